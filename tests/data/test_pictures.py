import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data import flow, pictures, scatter
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


@pytest.mark.parametrize("items, frames, size", [(2, 3, 8), (1, 12, 8), (3, 7, 5)])
def test_a_strip_has_items_down_kinds_within_and_frames_across(tmp_path, items, frames, size):
    """Each picture whole, enlarged by one factor and not resampled."""
    values = np.arange(items * 2 * frames).reshape(items, 2, frames) + 10
    kinds = np.broadcast_to(values.transpose(1, 2, 0)[..., None, None, None], (2, frames, items, 1, size, size))
    heads = [f"t = {i}" for i in range(frames)]
    pictures.strip({"$x_t$": kinds[0], r"$\hat{x}_0$": kinds[1]}, heads, tmp_path / "s.png", 256)
    a = read(tmp_path / "s.png")[26:, 44:, 0]
    places = np.array([[x.mean() for x in np.nonzero(a == v)] for v in values.ravel()]).reshape(*values.shape, 2)
    assert len({(a == v).sum() for v in values.ravel()}) == 1
    assert (a == 10).sum() % size**2 == 0
    down, across = places[..., 0], places[..., 1]
    assert (np.ptp(down, axis=2) == 0).all() and (np.diff(down[..., 0].ravel()) > 0).all()
    assert (np.ptp(across, axis=(0, 1)) == 0).all() and (np.diff(across[0, 0]) > 0).all()
    # a gap parts items, and not the kinds of one
    if items > 1:
        assert down[1, 0, 0] - down[0, 1, 0] > 1.1 * (down[0, 1, 0] - down[0, 0, 0])


def test_a_strip_needs_kinds_and_heads_that_fit(tmp_path):
    x = np.zeros((3, 2, 1, 8, 8))
    with pytest.raises(UsageError, match="a strip of 2 columns"):
        pictures.strip({"a": x}, ["0", "1"], tmp_path / "s.png", 17)
    with pytest.raises(UsageError, match="frames of one shape"):
        pictures.strip({"a": x, "b": x[:, :1]}, list("abc"), tmp_path / "s.png", 17)


def filmed(tmp_path):
    with Image.open(tmp_path / "f.gif") as film:
        count = film.n_frames
        film.seek(count - 1)
        return count, film.info["duration"]


@pytest.mark.parametrize("channels", [1, 3])
def test_films_of_images_have_all_frames_and_rest_on_the_last(tmp_path, channels):
    frames = RNG.normal(size=(3, 4, channels, 8, 8)) * np.array([30, 5, 1]).reshape(3, 1, 1, 1, 1)
    pictures.gif(frames, tmp_path / "f.gif", 17)
    assert filmed(tmp_path) == (3, 1600)
    pictures.strip({"x": frames}, list("abc"), tmp_path / "f.png", None)
    assert read(tmp_path / "f.png").ndim == 3


@pytest.mark.parametrize("d", [1, 2])
def test_films_of_points_have_all_frames_and_rest_on_the_last(tmp_path, d):
    frames = RNG.normal(size=(3, 40, d)) * np.array([30, 5, 1]).reshape(3, 1, 1)
    scatter.scatter_gif(frames, list("abc"), tmp_path / "f.gif")
    assert filmed(tmp_path) == (3, 1600)
    scatter.scatter_frames(frames, list("abc"), tmp_path / "f.png")
    assert read(tmp_path / "f.png").ndim == 3


def coloured(a, colour):
    """Where a colour is, below the legend: (rows, columns)."""
    near = np.abs(a[..., :3].astype(int) - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).sum(-1) < 30
    near[:100] = False
    return np.nonzero(near)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_flow_goes_from_its_start_to_its_end(tmp_path, d):
    """From the lower left to the upper right; the data are put in the upper left, where no path comes."""
    u = np.linspace(0, 1, 9).reshape(9, 1, 1)
    ends, behind = (np.full((20, d), 3.0) + 0.3 * RNG.normal(size=(20, d)) for _ in range(2))
    behind[:, 0] -= 3 * (d > 1)
    paths, grey = (1 - u) * 0.3 * RNG.normal(size=(20, d)) + u * ends, []
    for data in (behind, None):
        flow.flow(paths, u.ravel(), tmp_path / "f.png", data)
        a = read(tmp_path / "f.png")
        start, end = (coloured(a, c) for c in (flow.START, flow.END))
        assert min(len(start[0]), len(end[0])) > 100
        assert start[0].mean() > end[0].mean() + 200 and start[1].mean() < end[1].mean() - 200
        down, across = coloured(a, "#cccccc")
        near = abs(down - end[0].mean()) < 80
        grey.append((near & (abs(across - start[1].mean()) < 80) if d > 1 else near).sum())
    assert grey[0] > 2 * grey[1] + 40


def test_only_as_many_winding_paths_are_drawn_as_can_be_told_apart():
    straight = np.linspace(0, 0.3, 50)[:, None, None] * np.ones((50, 200, 2))
    assert flow._few(straight) == 200
    winding = RNG.normal(size=(300, 200, 2)) / 20
    count = flow._few(winding)
    ink = np.linalg.norm(np.diff(winding, axis=0), axis=2).sum(0)
    assert 1 < count < 20 and ink[:count].sum() <= flow.INK < ink[: count + 1].sum()
    assert flow._few(np.cumsum(RNG.normal(size=(10_000, 3, 2)), 0)) == 1


def test_unfit_flows_are_refused(tmp_path):
    paths = np.zeros((3, 4, 2))
    with pytest.raises(UsageError, match=r"not \(2, N, \*S\)"):
        flow.flow(paths, [0, 1], tmp_path / "f.png")
    with pytest.raises(UsageError, match="of 2 coordinates cannot lie on points of 3"):
        flow.flow(paths, [0, 1, 2], tmp_path / "f.png", np.zeros((5, 3)))
    paths[1, 2, 0] = np.nan
    with pytest.raises(NumericalError, match=r"path 2 is not finite \(1 of 4"):
        flow.flow(paths, [0, 1, 2], tmp_path / "f.png")


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", [0.0, 3.0])
@pytest.mark.parametrize("d", [1, 2])
def test_a_constant_set_is_drawn(tmp_path, constant, d):
    scatter.scatter({"x": np.full((4, d), constant)}, tmp_path / "c.png")
    scatter.scatter_frames(np.full((2, 4, d), constant), ["0", "1"], tmp_path / "c.png")
    flow.flow(np.full((2, 4, d), constant), [1, 1], tmp_path / "c.png", np.full((3, d), constant))


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
