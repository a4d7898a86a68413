import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data.image_folder import ImageFolder, evenly
from diffcli.errors import UsageError


def flat(value, mode="RGB", size=(12, 12)):
    return Image.new(mode, size, value)


@pytest.fixture
def numbered(tmp_path):
    """40 pictures in two sub-folders, the i-th all of grey i."""
    for i in range(40):
        folder = tmp_path / ("a" if i < 20 else "b")
        folder.mkdir(exist_ok=True)
        flat((i, i, i)).save(folder / f"{i:03d}.png")
    return str(tmp_path)


def values(items):
    x, _ = items.__getitems__(range(len(items)))
    return x[:, 0, 0, 0].tolist()


def test_splits_are_disjoint_cover_and_keep_sorted_order(numbered):
    data = ImageFolder(numbered, size=4)
    train, val, test = (values(data.split(name)) for name in ("train", "val", "test"))
    assert values(data.split("all")) == list(range(40)) == sorted(train + val + test)
    assert test == [0, 10, 20, 30] and len(val) == 4
    assert train == sorted(train)
    assert data.held_out


def test_classes_are_the_sub_folders(numbered):
    data = ImageFolder(numbered, size=4)
    assert data.class_names == ["a", "b"] and data.classes == 2
    x, y = data.split("train").__getitems__(range(len(data.split("train"))))
    assert torch.equal(y, (x[:, 0, 0, 0] >= 20).long())


def test_one_picture_outside_the_sub_folders_takes_the_classes_away(numbered, tmp_path):
    flat("red").save(tmp_path / "top.png")
    data = ImageFolder(numbered, size=4)
    assert data.classes == 0 and data.split("train")[0][1] == -1


def test_without_val_fraction_val_is_test(numbered):
    data = ImageFolder(numbered, size=4, val_fraction=0.0)
    assert values(data.split("val")) == values(data.split("test"))
    assert len(data.split("train")) == 36


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1 / 3, 0.5, 0.9])
def test_evenly_takes_its_share_of_every_stretch(fraction):
    share, rest = evenly(range(300), fraction)
    assert sorted(share + rest) == list(range(300))
    for start in range(0, 300, 30):
        assert abs(sum(start <= i < start + 30 for i in share) - 30 * fraction) <= 1


GREY16 = Image.fromarray(np.full((12, 12), 40000, np.uint16))
PALETTE = flat((200, 100, 0)).quantize(4)
TRANSPARENT = flat((0, 0, 0, 0), "RGBA")
HALF = flat((255, 0, 0, 128), "RGBA")


@pytest.mark.parametrize(
    "picture, suffix, rgb",
    [
        (flat((10, 20, 30)), "png", (10, 20, 30)),
        (flat((10, 20, 30)), "bmp", (10, 20, 30)),
        (flat((10, 20, 30)), "tiff", (10, 20, 30)),
        (flat((10, 20, 30)), "gif", (10, 20, 30)),
        (flat(77, "L"), "png", (77, 77, 77)),
        (flat(1, "1"), "png", (255, 255, 255)),
        (GREY16, "png", (156, 156, 156)),
        (GREY16, "tiff", (156, 156, 156)),
        (PALETTE, "png", (200, 100, 0)),
        (TRANSPARENT, "png", (255, 255, 255)),
        (HALF, "png", (255, 127, 127)),
        (flat((60, 0), "LA"), "png", (255, 255, 255)),
        (flat((50, 100, 150)), "JPG", (50, 100, 150)),
        (flat((50, 100, 150)), "webp", (50, 100, 150)),
        (flat((0, 0, 0, 0), "CMYK"), "jpeg", (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_is_read_as_its_colours(tmp_path, picture, suffix, rgb):
    picture.save(tmp_path / f"x.{suffix}")
    lossy = 3 if suffix in ("JPG", "webp", "jpeg") else 0
    x, _ = ImageFolder(str(tmp_path), size=4).split("all")[0]
    assert x.shape == (3, 4, 4) and x.dtype == torch.uint8
    assert (x.int() - torch.tensor(rgb)[:, None, None]).abs().max() <= lossy
    grey, _ = ImageFolder(str(tmp_path), size=4, channels=1).split("all")[0]
    luma = np.dot(rgb, [0.299, 0.587, 0.114])
    assert grey.shape == (1, 4, 4) and (grey - luma).abs().max() <= 1 + lossy


def test_resizing_keeps_the_mean_and_crops_the_centre(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "b.png")
    data = ImageFolder(str(tmp_path), size=8).split("all")
    small = data[0][0].float()
    assert abs(small.mean() - noise.mean()) < 1
    # Averaging 64 pixels leaves an eighth of the deviation; without antialiasing all of it would be left.
    assert small.std() < 0.25 * noise.std()
    # The filter reaches a pixel over the edge of the crop.
    assert (data[1][0][:, :, 2:6] == 200).all() and data[1][0].min() > 190


def test_the_own_size_leaves_pixels_untouched(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    x, _ = ImageFolder(str(tmp_path), size=8).split("all")[0]
    np.testing.assert_array_equal(x.permute(1, 2, 0).numpy(), noise)


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    a = np.zeros((8, 8, 3), np.uint8)
    a[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(a).save(tmp_path / "a.png", exif=exif)
    x, _ = ImageFolder(str(tmp_path), size=8).split("all")[0]
    assert (x[:, -1] == 255).all() and (x[:, 0] == 0).all()


def test_a_file_that_is_no_picture_is_named_when_the_split_is_made(numbered, tmp_path):
    (tmp_path / "b" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="broken.png is not a readable picture"):
        ImageFolder(numbered, size=4).split("train")


def test_a_truncated_picture_is_named_when_it_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:4000])
    items = ImageFolder(str(tmp_path), size=4).split("all")
    with pytest.raises(UsageError, match="cut.png cannot be decoded"):
        items[0]


def test_pixels_that_no_eight_bits_stand_for_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(UsageError, match="x.tiff has floating-point pixels"):
        ImageFolder(str(tmp_path), size=4).split("all")[0]
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "x.tiff")
    with pytest.raises(UsageError, match="x.tiff has pixels outside 0..65535"):
        ImageFolder(str(tmp_path), size=4).split("all")[0]


def test_folders_without_pictures_are_refused_when_loading_only(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for root, sentence in ((tmp_path / "none", "there is no folder"), (tmp_path, "has no pictures")):
        data = ImageFolder(str(root))
        assert data.shape == (3, 32, 32)
        with pytest.raises(UsageError, match=sentence):
            data.split("train")


def test_a_split_without_items_is_refused(tmp_path):
    flat("red").save(tmp_path / "only.png")
    with pytest.raises(UsageError, match="split 'train' of the data has no items"):
        ImageFolder(str(tmp_path)).split("train")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"root": ""}, "needs data.root"),
        ({"root": "x", "size": 0}, "data.size=0 is below 1"),
        ({"root": "x", "channels": 4}, "data.channels=4"),
        ({"root": "x", "test_fraction": 0.0}, "do not leave a training set"),
        ({"root": "x", "test_fraction": 0.6, "val_fraction": 0.4}, "do not leave a training set"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        ImageFolder(**arguments)
