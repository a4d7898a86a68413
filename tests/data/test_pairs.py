"""Folders of pairs: partners by name, the same splits on both sides, sentences for what is missing."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data.image_pairs import ImagePairs
from diffcli.data.pair_picture import names_of, pair_grid
from diffcli.errors import UsageError


def flat(value, file, mode="L", size=(6, 6)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file)


@pytest.fixture
def root(tmp_path):
    """30 pairs: input i is of grey i, its target of grey 100 + i; half of them in a sub-folder, written in no order."""
    for i in np.random.default_rng(0).permutation(30).tolist():
        name = f"{'b/' if i % 2 else ''}p{i:02d}"
        flat(i, tmp_path / "pairs/input" / f"{name}.png")
        flat(100 + i, tmp_path / "pairs/target" / f"{name}{'.bmp' if i % 3 else '.PNG'}")
    return tmp_path / "pairs"


def grey(root, **settings):
    return ImagePairs(str(root), size=4, channels=1, input_channels=1, **settings)


def values(data, split):
    items = data.split(split)
    x, y = items.__getitems__(range(len(items)))
    assert bool((y == -1).all())
    return x[:, 0, 0, 0].tolist(), items.given(range(len(items)), "image")[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("val", [0.0, 0.2])
def test_partners_stay_together_in_every_split(root, val):
    data, again = grey(root, val_fraction=val), grey(root, val_fraction=val)
    found = {name: values(data, name) for name in ("train", "val", "test", "all")}
    for name, (targets, inputs) in found.items():
        assert targets == [100 + i for i in inputs]
        assert values(again, name) == (targets, inputs)
    parts = ("train", "val", "test") if val else ("train", "test")
    assert sorted(i for name in parts for i in found[name][1]) == list(range(30)) == sorted(found["all"][1])
    assert val or found["val"] == found["test"]


def test_endings_move_no_pair_to_another_split(root, tmp_path):
    before = values(grey(root), "test")
    for file in (root / "input").rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    assert values(grey(root), "test") == before


def test_partners_are_found_by_name_not_by_order(tmp_path):
    """The endings put the files of the two sides in different orders."""
    for name, value in (("p", 1), ("p.j", 2)):
        flat(value, tmp_path / "input" / f"{name}.png")
        flat(100 + value, tmp_path / "target" / f"{name}.bmp")
    assert values(grey(tmp_path), "all") == ([101, 102], [1, 2])


def test_sides_are_named(root):
    (root / "input").rename(root / "edges")
    (root / "target").rename(root / "photos")
    assert values(grey(root, input="edges", target="photos"), "all")[1][:3] == [1, 3, 5]
    back = values(grey(root, input="photos", target="edges"), "all")
    assert back[1] == [100 + i for i in back[0]]


def test_each_side_has_its_channels(root):
    flat((9, 8, 7), root / "target/p00.PNG", "RGB")
    data = ImagePairs(str(root), size=4, channels=3, input_channels=1)
    assert data.shape == (3, 4, 4) and data.image == (1, 4, 4)
    items = data.split("all")
    at = items.names.index("p00")
    assert items[at][0][:, 0, 0].tolist() == [9, 8, 7] and items.given([at], "image").shape == (1, 1, 4, 4)
    with pytest.raises(UsageError, match="vector"):
        items.given([0], "vector")


@pytest.mark.parametrize("width", [12, 13])
def test_side_by_side(tmp_path, width):
    for i in range(10):
        both = np.full((6, width), 50 + i, np.uint8)
        both[:, -6:] = 150 + i
        (tmp_path / "both").mkdir(exist_ok=True)
        Image.fromarray(both).save(tmp_path / "both" / f"{i}.png")
    data = grey(tmp_path / "both", layout="side_by_side")
    targets, inputs = values(data, "all")
    assert targets == [150 + i for i in range(10)] and inputs == [50 + i for i in range(10)]
    assert values(grey(tmp_path / "both", layout="side_by_side", target="left"), "all") == (inputs, targets)
    with pytest.raises(UsageError, match="left and right"):
        grey(tmp_path / "both", layout="side_by_side", input="top")


def test_missing_partner_is_named(root):
    (root / "target/p04.bmp").unlink()
    with pytest.raises(UsageError, match=r"input/p04.png has no partner in target/ \(1 of 30"):
        grey(root).split("train")
    (root / "input/p04.png").unlink()
    flat(1, root / "target/b/new.png")
    with pytest.raises(UsageError, match=r"target/b/new.png has no partner in input/"):
        grey(root).split("train")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: shutil.rmtree(r), "there is no folder data.root"),
        (lambda r: shutil.rmtree(r / "input"), "has no folder input/, only target"),
        (lambda r: (shutil.rmtree(r / "target"), (r / "target").mkdir()), "target has no pictures"),
        (lambda r: (r / "input/b/p03.png").write_text("no picture"), "p03.png is not a readable picture"),
        (lambda r: flat(1, r / "input/p00.bmp"), "have the same name"),
    ],
)
def test_what_is_missing_or_unreadable_is_said(root, spoil, words):
    spoil(root)
    with pytest.raises(UsageError, match=words):
        grey(root).split("train")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(channels=2), "data.channels=2"),
        (dict(input_channels=4), "data.input_channels=4"),
        (dict(layout="stacked"), "folders nor side_by_side"),
        (dict(input="a", target="a"), "data.target too"),
        (dict(test_fraction=0.9, val_fraction=0.2), "training set"),
        (dict(size=0), "data.size=0"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        ImagePairs("x", **settings)


def test_grid_has_rows_of_input_samples_and_target(tmp_path):
    inputs, targets = torch.tensor([10.0, 20.0]), torch.tensor([70.0, 80.0])
    samples = torch.tensor([31.0, 32.0, 41.0, 42.0])
    images = [v.view(-1, 1, 1, 1).expand(-1, c, 2, 2).numpy() for v, c in ((inputs, 1), (samples, 3), (targets, 3))]
    pair_grid(*images, tmp_path / "a.png", 256, each=2)
    a = np.asarray(Image.open(tmp_path / "a.png"))
    places = np.unique(a[..., 0])
    assert set(places) == {10, 20, 31, 32, 41, 42, 70, 80, 128}
    rows = [[v for v, _ in _runs(line) if v != 128] for line in a[..., 0] if (line != 128).any()]
    assert rows[0] == [10, 31, 32, 70, 20, 41, 42, 80]


def _runs(line):
    edges = [0, *(np.flatnonzero(np.diff(line)) + 1), len(line)]
    return [(int(line[a]), b - a) for a, b in pairwise(edges)]


def test_names_are_never_the_same():
    assert names_of(["a", "b"]) == ["a", "b"]
    assert names_of(["a", "a", "b"]) == ["a_0", "a_1", "b"]
    clash = names_of(["a", "a", "a_1"])
    assert len(set(clash)) == 3
