"""Where batches come from changes nothing of them; each item is read once; augmentation is a function of (seed, step, rank)."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data.base import Items
from diffcli.data.digits import Digits
from diffcli.data.image_folder import ImageFolder
from diffcli.data.points import Points
from diffcli.errors import DiffcliError, UsageError
from diffcli.randomness import Draw
from diffcli.training.augment import Augment
from diffcli.training.batches import Batches
from diffcli.training.data import BatchOrder


class Counted(Items):
    """Items that have to be read, and how often each was; number `bad` cannot be."""

    def __init__(self, n, bad=-1, dtype=torch.uint8):
        self.x, self.times, self.bad = torch.arange(3 * n, dtype=dtype).view(n, 3), [0] * n, bad

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        for i in indices:
            self.times[i] += 1
        if self.bad in indices and len(indices) > 1:  # the first is looked at alone before
            raise UsageError("it is damaged")
        return self.x[indices], torch.tensor(indices)


def taken(batches, count):
    return list(itertools.islice(iter(batches), count))


@pytest.mark.parametrize(("n", "size", "world", "start"), [(23, 5, 1, 0), (7, 10, 1, 30), (40, 6, 3, 18)])
@pytest.mark.parametrize("limit", [0, 23 * 11 - 1, 10**6])
def test_what_stays_is_what_was_read(n, size, world, start, limit):
    """The batches are those of the order wherever they come from; items that fit are read once, others each time."""
    for rank in range(world):
        order, items = BatchOrder(n, size, 3, rank, world, start), Counted(n)
        batches = Batches(items, order, limit=limit)
        assert batches.resident == (limit >= n * 11)
        for index, (x, y) in zip(order, taken(batches, 40), strict=False):
            assert torch.equal(x, items.x[index]) and y.tolist() == index
        items.times[0] -= 1  # which its size was found by
        assert set(items.times) == {1} if batches.resident else max(items.times) > 2


def test_floats_that_are_read_do_not_stay_and_those_in_memory_do():
    assert not Batches(Counted(9, dtype=torch.float32), BatchOrder(9, 3, 0), limit=1e9).resident
    moons = Points("moons", n=50).split("train")
    batches = Batches(moons, BatchOrder(50, 8, 0), limit=1)
    assert batches.held[0] is moons.x  # no second one of it
    (index,), ((x, y),) = itertools.islice(BatchOrder(50, 8, 0), 1), taken(batches, 1)
    assert torch.equal(x, moons.x[index]) and torch.equal(y, moons.y[index])


@pytest.mark.parametrize("limit", [0, 1e9])
def test_an_item_that_cannot_be_read_is_a_batch_of_its_sentence(limit):
    """The fetcher asks one batch ahead: those behind it must not fail in another way."""
    order, items = BatchOrder(20, 4, 0), Counted(20, bad=13)
    found = taken(Batches(items, order, limit=limit), 5)
    first = next(k for k, index in enumerate(order) if 13 in index)
    assert isinstance(found[first], DiffcliError) and not any(isinstance(b, DiffcliError) for b in found[:first])


@pytest.fixture
def pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 6, 6, 3), dtype=np.uint8)
    for i, a in enumerate(pixels):
        Image.fromarray(a).save(tmp_path / f"{i:02d}.png")
    return ImageFolder(str(tmp_path), size=6).split("train")


@pytest.mark.parametrize("limit", [0, 1e9])
def test_workers_change_no_batch(pictures, limit):
    order = BatchOrder(len(pictures), 7, 1)
    plain = taken(Batches(pictures, order), 9)
    for (x, y), (u, v) in zip(plain, taken(Batches(pictures, order, workers=1, limit=limit), 9), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_the_share_of_time_that_is_waited_for():
    """All of it where nothing else is done; what is done between two batches is none of it."""
    batches = Batches(Counted(4000), BatchOrder(4000, 2000, 0))
    for _ in itertools.islice(iter(batches), 20):
        pass
    assert 0.9 < batches.waited() <= 1
    batches._waited, batches._since = 0.25, batches._since - 1
    assert batches.waited() == pytest.approx(0.25, abs=0.05)
    assert batches.waited() == 0


class Pictures:
    shape = (2, 5, 7)


def moved(x, mirrored, dy, dx):
    """Images, row by row and column by column."""

    def inside(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    x = x.flip(-1) if mirrored else x
    return x[:, :, [inside(i + dy, 5) for i in range(5)]][..., [inside(j + dx, 7) for j in range(7)]]


def test_images_are_mirrored_and_moved():
    """Each in its own way, all ways equally often, a condition image as its item; all of it is (seed, step, rank)'s."""
    x = torch.arange(2000 * 2 * 5 * 7).view(2000, 2, 5, 7)
    augment = Augment(Pictures, flip=True, shift=2)
    found, same = augment(x, x.double(), Draw(0, 5))
    assert torch.equal(found.double(), same) and found.dtype == x.dtype
    ways = itertools.product((False, True), range(-2, 3), range(-2, 3))
    counts = [(found == moved(x, *way)).flatten(1).all(1).sum().item() for way in ways]
    assert sum(counts) == 2000 and min(counts) > 15 and max(counts) < 75  # 40 each, with a deviation of 6.3
    for other, alike in ((Draw(0, 5), True), (Draw(1, 5), False), (Draw(0, 6), False), (Draw(0, 5, rank=1), False)):
        assert torch.equal(augment(x, torch.zeros(2000), other)[0], found) == alike


def test_nothing_is_changed_by_default():
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    assert [a is b for a, b in zip(Augment(Digits())(x, y, None), (x, y), strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("data", "more", "word"), [(Points("moons"), {"flip": True}, "flip"), (Digits(), {"shift": 8}, "8 pixels")]
)
def test_what_does_not_fit_is_refused(data, more, word):
    with pytest.raises(UsageError, match=word):
        Augment(data, **more)
