import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data import pictures, scatter
from diffcli.data.digits import Digits
from diffcli.data.mixture import Mixture
from diffcli.errors import NumericalError, UsageError

RNG = np.random.default_rng(0)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pixels_take_levels_to_eight_bits():
    k = np.arange(17.0).reshape(1, 1, 1, 17)
    np.testing.assert_array_equal(pictures.pixels(k, 17).ravel(), np.round(np.arange(17) * 255 / 16))
    out_of_range = np.array([-40.0, 300.0]).reshape(1, 1, 1, 2)
    assert pictures.pixels(out_of_range, 256).ravel().tolist() == [0, 255]
    assert pictures.pixels(out_of_range, None).ravel().tolist() == [0, 255]


@pytest.mark.filterwarnings("error")
def test_a_constant_image_without_levels_is_black():
    assert pictures.pixels(np.full((1, 1, 2, 2), 7.0), None).max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_written_files_hold_the_pixels_themselves(tmp_path, channels):
    x = RNG.integers(0, 256, (3, channels, 5, 4), dtype=np.uint8)
    pictures.write_pngs(torch.from_numpy(x), tmp_path / "new", 256)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    for i in range(3):
        np.testing.assert_array_equal(
            read(tmp_path / "new" / f"{i:06d}.png").reshape(5, 4, channels).transpose(2, 0, 1), x[i]
        )


@pytest.mark.parametrize("n, columns, rows", [(1, 1, 1), (6, 3, 2), (7, 3, 3), (16, 4, 4)])
def test_a_grid_shows_every_image_at_its_place(tmp_path, n, columns, rows):
    x = np.broadcast_to(np.arange(1, n + 1).reshape(n, 1, 1, 1), (n, 1, 8, 8))
    pictures.image_grid(x, tmp_path / "g.png", 256)
    a = read(tmp_path / "g.png")
    assert a.shape[1] >= 400
    h, w = a.shape[0] / rows, a.shape[1] / columns
    shown = [a[int((i // columns + 0.5) * h), int((i % columns + 0.5) * w)] for i in range(n)]
    assert shown == list(range(1, n + 1))
    enlarged = {i: (a == i).sum() for i in range(1, n + 1)}
    assert len(set(enlarged.values())) == 1 and enlarged[1] % 64 == 0


def test_columns_scale_and_labels_set_the_size(tmp_path):
    x = RNG.integers(0, 256, (6, 3, 8, 8))
    pictures.image_grid(x, tmp_path / "a.png", 256, columns=6, scale=1)
    assert read(tmp_path / "a.png").shape == (10, 55, 3)
    pictures.image_grid(x, tmp_path / "b.png", 256, columns=6, labels=list("abcdef"))
    assert read(tmp_path / "b.png").shape[0] > 8 * 9
    with pytest.raises(UsageError, match="2 labels cannot stand under 6 images"):
        pictures.image_grid(x, tmp_path / "c.png", 256, labels=["a", "b"])


def test_a_strip_has_items_down_and_frames_across(tmp_path):
    frames = np.empty((3, 2, 1, 8, 8))
    frames[:] = (10 * np.arange(3)[:, None] + np.arange(2) + 1)[:, :, None, None, None]
    pictures.strip(frames, tmp_path / "s.png", 256)
    a = read(tmp_path / "s.png")
    h, w = a.shape[0] // 2, a.shape[1] // 3
    assert [[a[h * i + h // 2, w * f + w // 2] for f in range(3)] for i in range(2)] == [[1, 11, 21], [2, 12, 22]]


@pytest.mark.parametrize("shape", [(3, 4, 1, 8, 8), (3, 4, 3, 8, 8), (3, 40, 1), (3, 40, 2)])
def test_films_have_all_frames_and_rest_on_the_last(tmp_path, shape):
    data = Digits() if len(shape) == 5 else Mixture()
    frames = RNG.normal(size=shape) * np.linspace(30, 1, 3).reshape(3, *[1] * (len(shape) - 1))
    pictures.film(frames, tmp_path / "f", data)
    with Image.open(tmp_path / "f.gif") as film:
        assert film.n_frames == 3
        film.seek(2)
        assert film.info["duration"] == 1600
    assert read(tmp_path / "f.png").ndim >= 2


@pytest.mark.parametrize("name", ["line", "four", "sixteen"])
def test_points_of_any_dimension_are_drawn(tmp_path, name):
    data = Mixture(name, n=200)
    pictures.picture(data.split("train").x, tmp_path / "p.png", data)
    a = read(tmp_path / "p.png")[..., :3]
    # Something blue is there besides axes and words in black.
    assert ((a[..., 2].astype(int) - a[..., 0]) > 30).sum() > 100


def test_images_are_drawn_as_a_grid(tmp_path):
    data = Digits()
    x, _ = data.split("test").__getitems__(range(9))
    pictures.picture(x, tmp_path / "p.png", data)
    pictures.image_grid(x, tmp_path / "q.png", 17)
    np.testing.assert_array_equal(read(tmp_path / "p.png"), read(tmp_path / "q.png"))


def test_axes_are_common_unless_the_noise_is_far_wider():
    near, far = RNG.normal(size=(50, 2)), 50 * RNG.normal(size=(50, 2))
    (c1, h1), (c2, h2) = scatter._limits([near, 2 * near])
    assert np.array_equal(c1, c2) and np.array_equal(h1, h2)
    (_, h1), (_, h2) = scatter._limits([far, near])
    assert h1[0] > 10 * h2[0]


@pytest.mark.parametrize("constant", [0.0, 3.0])
@pytest.mark.parametrize("d", [1, 2])
def test_a_constant_set_is_drawn(tmp_path, constant, d):
    scatter.scatter({"x": np.full((4, d), constant)}, tmp_path / "c.png")
    scatter.scatter_frames(np.full((2, 4, d), constant), tmp_path / "c.png")


def test_unfit_pictures_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"the shape \(N, 1 or 3, H, W\), not \(2, 4, 8, 8\)"):
        pictures.image_grid(np.zeros((2, 4, 8, 8)), tmp_path / "x.png", 256)
    x = np.zeros((3, 1, 8, 8))
    x[1, 0, 2, 2] = np.nan
    with pytest.raises(NumericalError, match=r"image 1 is not finite \(1 of 3"):
        pictures.write_pngs(x, tmp_path, 256)
    with pytest.raises(NumericalError, match="samples: item 2 is not finite"):
        scatter.scatter({"samples": np.array([[0.0], [1.0], [np.inf]])}, tmp_path / "x.png")
    with pytest.raises(UsageError, match=r"of one dimension, not of \[1, 2\]"):
        scatter.scatter({"a": np.zeros((2, 1)), "b": np.zeros((2, 2))}, tmp_path / "x.png")
    with pytest.raises(UsageError, match="no set"):
        scatter.scatter({}, tmp_path / "x.png")
    with pytest.raises(UsageError, match=r"a has shape \(0, 2\)"):
        scatter.scatter({"a": np.zeros((0, 2))}, tmp_path / "x.png")
