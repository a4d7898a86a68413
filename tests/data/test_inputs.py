"""What the user names on the command line: pictures of any kind and size, folders, arrays, masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data.inputs import files, picture_size, read_inputs
from diffcli.data.masks import SHAPES, known_of, mask_file, transparent
from diffcli.errors import UsageError


def gradient(h, w, mode="L"):
    """Rows that rise from 0 to 255 from left to right, so that every crop and every scale is told."""
    x = np.linspace(0, 255, w).round().astype(np.uint8)[None].repeat(h, 0)
    return Image.fromarray(x).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_models_own_size_keeps_its_pixels(tmp_path, mode, channels):
    gradient(8, 8).convert(mode).save(tmp_path / "a.png")
    x = read_inputs(str(tmp_path / "a.png"), (channels, 8, 8), 256)
    assert x.shape == (1, channels, 8, 8) and x.dtype == torch.float32
    assert np.allclose(x[0, 0], np.asarray(gradient(8, 8)), atol=1)


def test_levels_are_the_datas(tmp_path):
    """White is the highest of any number of levels."""
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    for levels in (2, 17, 256):
        assert torch.equal(
            read_inputs(str(tmp_path / "white.png"), (1, 8, 8), levels), torch.full((1, 1, 8, 8), levels - 1.0)
        )


def test_the_shorter_side_is_scaled_and_the_centre_kept(tmp_path):
    gradient(16, 64).save(tmp_path / "wide.png")
    x = read_inputs(str(tmp_path / "wide.png"), (1, 8, 8), 256)[0, 0]
    assert abs(x.mean().item() - 127.5) < 1  # the middle of the gradient
    assert 50 < x[0, -1] - x[0, 0] < 64  # a quarter of its range


def test_transparent_parts_are_white(tmp_path):
    a = np.zeros((8, 8, 4), np.uint8)
    a[:, 4:, 3] = 255
    Image.fromarray(a, "RGBA").save(tmp_path / "half.png")
    x = read_inputs(str(tmp_path / "half.png"), (3, 8, 8), 256)[0]
    assert (x[..., :4] == 255).all() and (x[..., 4:] == 0).all()


def test_files_and_folders_come_in_order(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, value in (("b", 20), ("a", 10), ("c", 30)):
        Image.new("L", (4, 4), value).save(tmp_path / f"folder/{name}.png")
    (tmp_path / "folder/notes.txt").write_text("no picture")
    Image.new("L", (4, 4), 99).save(tmp_path / "first.png")
    x = read_inputs([str(tmp_path / "first.png"), str(tmp_path / "folder")], (1, 4, 4), 256)
    assert x[:, 0, 0, 0].tolist() == [99, 10, 20, 30]
    assert [f.name for f in files(str(tmp_path / "folder"))] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("saved", "shape"),
    [
        ((5, 3, 4, 4), (3, 4, 4)),
        ((3, 4, 4), (3, 4, 4)),
        ((5, 4, 4, 3), (3, 4, 4)),
        ((5, 4, 4), (1, 4, 4)),
        ((5, 2), (2,)),
        ((5, 7, 2), (7, 2)),
    ],
)
def test_arrays_in_the_layouts_that_there_are(tmp_path, saved, shape):
    x = np.random.default_rng(0).integers(0, 256, saved)
    np.save(tmp_path / "x.npy", x)
    got = read_inputs(str(tmp_path / "x.npy"), shape, 256 if len(shape) == 3 else None)
    assert got.shape[1:] == shape
    expected = x[None] if saved == shape else x.transpose(0, 3, 1, 2) if saved[-1] == 3 and shape[0] == 3 else x
    assert np.array_equal(got.numpy().reshape(expected.shape), expected)


def test_double_precision_stays(tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 2), 1 / 3))
    assert (read_inputs(str(tmp_path / "x.npy"), (2,), None) == 1 / 3).all()


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("nowhere.png", (1, 4, 4), "there is no such file or folder"),
        ("empty", (1, 4, 4), "the folder has no pictures"),
        ("text.png", (1, 4, 4), "cannot be decoded"),
        ("text.npy", (2,), "not a readable .npy"),
        ("points.npy", (3,), r"items of shape \(2,\), not \(3,\)"),
        ("picture.png", (2,), "are no pictures"),
        ("picture.png", (1, 4, 6), "not square"),
        ("nan.npy", (2,), "not finite"),
        ("unit.npy", (1, 4, 4), "levels are 0..255"),
    ],
)
def test_refusals(tmp_path, name, shape, words):
    (tmp_path / "empty").mkdir()
    for text in ("text.png", "text.npy"):
        (tmp_path / text).write_text("words")
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    np.save(tmp_path / "points.npy", np.zeros((3, 2)))
    np.save(tmp_path / "nan.npy", np.full((3, 2), np.nan))
    np.save(tmp_path / "unit.npy", np.linspace(0, 1, 32).reshape(2, 1, 4, 4))
    with pytest.raises(UsageError, match=words):
        read_inputs(str(tmp_path / name), shape, 256 if len(shape) == 3 else None)


def test_no_file_at_all():
    with pytest.raises(UsageError, match="names no file"):
        read_inputs([], (2,), None)


def test_the_size_of_a_picture(tmp_path):
    gradient(5, 7).save(tmp_path / "grey.png")
    gradient(5, 7, "RGB").save(tmp_path / "colour.png")
    assert picture_size(tmp_path / "grey.png") == (1, 5, 7)
    assert picture_size(tmp_path / "colour.png") == (3, 5, 7)


def draw(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", SHAPES)
@pytest.mark.parametrize("size", [0.25, 0.5])
def test_the_share_that_is_unknown(mask, size):
    known = known_of(mask, size, None, (3, 32, 32), draw)
    share = {"square": size**2, "outside": 1 - size**2}.get(mask, size)
    assert known.shape == (32, 32) and abs((~known).double().mean().item() - share) < 0.05


def test_which_side_is_unknown():
    sides = {"left": (0, 0), "top": (0, 0), "right": (-1, -1), "bottom": (-1, -1)}
    for mask, corner in sides.items():
        known = known_of(mask, 0.5, None, (1, 8, 8), draw)
        assert not known[corner] and known[-1 - corner[0], -1 - corner[1]]
    assert (
        known_of("left", 0.5, None, (1, 8, 8), draw)[0, -1] and not known_of("left", 0.5, None, (1, 8, 8), draw)[-1, 0]
    )


def test_coordinates_of_points():
    assert known_of("square", 0.5, None, (4,), draw).tolist() == [True, True, False, False]
    assert known_of("square", 0.5, [3, 0], (2, 2), draw).tolist() == [[True, False], [False, True]]


def test_masks_from_files(tmp_path):
    """White and 1 are unknown; a picture of another size is scaled like the inputs."""
    a = np.zeros((8, 8), np.uint8)
    a[:, 4:] = 255
    Image.fromarray(a).resize((16, 16), Image.NEAREST).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", a // 255)
    for name in ("m.png", "m.npy"):
        assert np.array_equal(mask_file(str(tmp_path / name), 8, 8), a > 0)
        assert np.array_equal(known_of(str(tmp_path / name), 0.5, None, (3, 8, 8), draw), a == 0)
    np.save(tmp_path / "grey.npy", a / 300)
    with pytest.raises(UsageError, match="0 and 1"):
        mask_file(str(tmp_path / "grey.npy"), 8, 8)
    gradient(8, 8, "RGB").save(tmp_path / "opaque.png")
    with pytest.raises(UsageError, match="no transparent part"):
        transparent(tmp_path / "opaque.png", 8, 8)
