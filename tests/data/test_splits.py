"""What holds for every data set that needs no files."""

import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from diffcli.data.base import TensorItems
from diffcli.data.digits import Digits
from diffcli.data.mixture import Mixture
from diffcli.data.points import Points
from diffcli.errors import UsageError

MAKE = {
    "digits": Digits,
    "mixture": lambda: Mixture(n=300),
    "line": lambda: Mixture("line", n=300),
    **{name: lambda name=name: Points(name, n=300) for name in ("moons", "circles", "checkerboard", "swiss_roll")},
}


def rows(items):
    x, _ = items.__getitems__(range(len(items)))
    return [row.numpy().tobytes() for row in x]


@pytest.mark.parametrize("name", MAKE)
def test_splits_are_disjoint_and_cover(name):
    data = MAKE[name]()
    train, val, test = (rows(data.split(part)) for part in ("train", "val", "test"))
    assert data.held_out
    assert sorted(train + val + test) == sorted(rows(data.split("all")))
    assert len({*train, *val, *test}) == len(train) + len(val) + len(test)


@pytest.mark.parametrize("name", MAKE)
def test_labels_are_the_classes(name):
    data = MAKE[name]()
    x, y = data.split("train").__getitems__(range(len(data.split("train"))))
    assert x.shape[1:] == data.shape and y.dtype == torch.int64
    assert len(data.class_names) == data.classes
    assert y.unique().tolist() == (list(range(data.classes)) if data.classes else [-1])


@pytest.mark.parametrize("name", MAKE)
def test_two_builds_give_the_same_items_and_another_seed_others(name):
    assert rows(MAKE[name]().split("val")) == rows(MAKE[name]().split("val"))
    if name == "digits":
        return
    other = Mixture(n=300, seed=1) if name in ("mixture", "line") else Points(name, n=300, seed=1)
    assert rows(other.split("val")) != rows(MAKE[name]().split("val"))


def test_digits_go_by_their_last_figure():
    data = Digits()
    everything = rows(data.split("all"))
    assert len(everything) == 1797
    assert rows(data.split("test")) == everything[::10]
    assert rows(data.split("val")) == everything[5::10]
    x = data.split("all").x
    assert x.dtype == torch.uint8 and x.min() == 0 and x.max() == data.transform.levels - 1


@pytest.mark.parametrize("name", ["moons", "circles", "checkerboard", "swiss_roll"])
def test_point_sets_have_mean_near_zero_and_scale_near_one(name):
    x = Points(name, n=4000).split("train").x
    assert x.mean(0).abs().max() < 0.1
    assert x.std(0).min() > 0.5 and x.std(0).max() < 1.5


def test_checkerboard_leaves_half_of_the_squares_empty():
    x = Points("checkerboard", n=4000, noise=0.0).split("train").x
    dark = (x.floor().sum(1) % 2) == 0
    assert dark.all() and x.abs().max() <= 2
    assert len(torch.unique(x.floor(), dim=0)) == 8


def test_a_batch_is_the_stack_of_its_items():
    items = Digits().split("train")
    x, y = items.__getitems__([3, 1, 3])
    assert torch.equal(x, torch.stack([items[i][0] for i in (3, 1, 3)]))
    assert torch.equal(y, torch.stack([items[i][1] for i in (3, 1, 3)]))
    loaded = next(iter(DataLoader(items, batch_size=3, sampler=[3, 1, 3], collate_fn=lambda batch: batch)))
    assert torch.equal(loaded[0], x) and torch.equal(loaded[1], y)


def test_a_split_is_loaded_once():
    data = Digits()
    assert data.split("val") is data.split("val")


def test_iteration_ends():
    assert len(list(TensorItems(torch.zeros(3, 2)))) == 3


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: Digits().split("valid"), "no split 'valid'"),
        (lambda: Points("spiral"), "no point set 'spiral'"),
        (lambda: Points(n=0), "data.n=0 is below 1"),
        (lambda: Points(noise=-1.0), "data.noise=-1.0"),
        (lambda: Points(seed=-1), "data.seed=-1"),
        (lambda: TensorItems(torch.zeros(3, 2), torch.zeros(2)), "3 items have labels of shape"),
    ],
)
def test_bad_arguments_are_refused(call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call()


def test_an_unknown_split_names_those_there_are():
    with pytest.raises(UsageError) as error:
        Digits().split("valid")
    assert error.value.hint == "splits are train, val, test, all"


def test_importing_the_data_sets_imports_no_heavy_library():
    code = (
        "import sys, diffcli.data.mixture, diffcli.data.torchvision_sets, diffcli.data.image_folder, "
        "diffcli.data.array, diffcli.data.points, diffcli.data.digits, diffcli.data.pictures; "
        "print({'torchvision', 'sklearn', 'PIL', 'matplotlib', 'lightning', 'hydra', 'omegaconf'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
