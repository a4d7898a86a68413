"""Files that stay on the disk give the same items as files that are read into memory."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffcli.data import array, measure, stored
from diffcli.data.array import Array, load_array, open_array
from diffcli.data.base import TensorItems
from diffcli.data.measure import MEASURES, measured
from diffcli.data.stored import Stored, StoredItems
from diffcli.errors import UsageError


@pytest.fixture
def save(tmp_path):
    def write(name, x):
        np.save(tmp_path / name, x)
        return str(tmp_path / name)

    return write


@pytest.fixture(autouse=True)
def on_disk(monkeypatch):
    monkeypatch.setattr(stored, "HELD", 0)
    monkeypatch.setattr(array, "_looked_through", set())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float16", ">f4", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_items_are_those_of_the_file_in_memory(save, dtype, order):
    x = np.asarray(np.random.default_rng(0).integers(-9, 99, (23, 2, 3)) % 100, dtype=dtype, order=order)
    file = save("x.npy", x)
    found, held = open_array(file), load_array(file)
    assert isinstance(found, Stored) and found.shape == held.shape and found.dtype == held.dtype
    for index in ([3], [22, 0, 0, -1], range(23), range(4, 9), range(0, 23, 5), torch.tensor([7, 2])):
        got = found[index]
        assert got.dtype == held.dtype
        assert torch.equal(got, held[torch.as_tensor(index)])
    again = pickle.loads(pickle.dumps(found))  # as a process that loads data gets it
    assert torch.equal(again[[5]], held[[5]])
    for odd in ([23], [-24]):
        with pytest.raises(IndexError):
            found[odd]


def test_splits_labels_and_vectors_are_the_same(save, monkeypatch):
    rng = np.random.default_rng(1)
    files = {
        "file": save("x.npy", rng.normal(size=(20, 3)).astype("f4")),
        "test_file": save("t.npy", rng.normal(size=(7, 3))),
        "labels": save("y.npy", np.arange(20) % 3),
        "test_labels": save("ty.npy", np.arange(7) % 3),
        "vectors": save("v.npy", rng.normal(size=(20, 2))),
        "test_vectors": save("tv.npy", rng.normal(size=(7, 2))),
    }
    large = Array(**files)
    for split in ("train", "val", "test", "all"):
        large.split(split)
    monkeypatch.setattr(stored, "HELD", 2**26)
    small = Array(**files)
    assert isinstance(large.split("train"), StoredItems) and isinstance(small.split("train"), TensorItems)
    assert (large.shape, large.vector, large.classes) == (small.shape, small.vector, small.classes) == ((3,), 2, 3)
    for split in ("train", "val", "test", "all"):
        a, b = large.split(split), small.split(split)
        assert len(a) == len(b)
        index = [len(a) - 1, 0, 3, len(a) - 3, -2]
        for p, q in zip(a.__getitems__(index), b.__getitems__(index), strict=True):
            assert p.dtype == q.dtype and torch.equal(p, q)
        assert torch.equal(a.given(index, "vector"), b.given(index, "vector"))
        with pytest.raises(IndexError):
            a.__getitems__([len(a)])


@pytest.mark.parametrize(("where", "most"), [(0, 2**32), (1999, 2**32), (1999, 40)])
def test_an_item_that_is_not_finite_is_named_before_any_work_or_when_it_is_read(save, monkeypatch, where, most):
    monkeypatch.setattr(stored, "CHUNK", 40)
    monkeypatch.setattr(stored, "CHECKED", most)
    x = np.ones((2000, 2), "f4")
    x[where, 1] = np.nan
    data = Array(save("x.npy", x))
    if most > 40:
        with pytest.raises(UsageError, match=f"item {where} is not finite"):
            data.split("train")
        return
    items = data.split("train")
    assert len(data.notes) == 1
    assert items.__getitems__([0, 1998])[0].sum() == 4
    with pytest.raises(UsageError, match=f"item {where} is not finite"):
        items.__getitems__([0, where])


def test_a_file_is_looked_through_once_and_again_where_it_changed(save, monkeypatch):
    file, count = save("x.npy", np.ones((50, 2))), []
    check = Stored.check
    monkeypatch.setattr(Stored, "check", lambda self: (count.append(1), check(self)))
    for _ in range(3):
        Array(file).split("train")
    assert len(count) == 1
    save("x.npy", np.full((60, 2), np.nan))
    with pytest.raises(UsageError, match="item 0 is not finite"):
        Array(file).split("train")


def test_a_file_that_is_cut_short_is_a_sentence_and_no_end_of_the_process(save):
    file = save("x.npy", np.ones((100, 2)))
    items = Array(file).split("train")
    os.truncate(file, 500)
    assert items.__getitems__([0])[0].sum() == 2
    with pytest.raises(UsageError, match="shorter than the 100 items"):
        items.__getitems__([99])
    with pytest.raises(UsageError, match="not a readable"):
        Array(file).split("train")


@pytest.mark.parametrize(("x", "sentence"), [(np.ones(4), "has shape"), (np.ones((3, 2), complex), "dtype")])
def test_unfit_files_are_refused_as_small_ones_are(save, x, sentence):
    with pytest.raises(UsageError, match=sentence):
        Array(save("x.npy", x)).split("train")


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_measured_in_parts_is_what_is_measured_at_once(monkeypatch, name):
    x = 3 + 1e-3 * torch.randn(501, 2, 2, generator=torch.Generator().manual_seed(0))
    items, encode = TensorItems(x), lambda a: a
    at_once = measured(name, items, encode)
    assert at_once == MEASURES[name](x)
    monkeypatch.setattr(measure, "WHOLE", 100)
    monkeypatch.setattr(measure, "PART", 64)
    read = []
    monkeypatch.setattr(TensorItems, "__getitems__", lambda self, i: (read.append(len(i)), (self.x[list(i)], None))[1])
    assert measured(name, items, encode) == pytest.approx(at_once, rel=1e-9)
    assert name == "sigma_max" or max(read) == 16
    with pytest.raises(UsageError, match="nothing to measure"):
        measured(name, TensorItems(torch.ones(501, 4)), encode)


READING = """
import re, sys
import torch
from diffcli.data.array import Array
from diffcli.training.batches import Batches
from diffcli.training.data import BatchOrder


def memory():
    return {k: int(v) for k, v in re.findall(r"(VmHWM|RssAnon):\\s+(\\d+)", open("/proc/self/status").read())}


before = memory()
items = Array(sys.argv[1]).split("train")
batches = iter(Batches(items, BatchOrder(len(items), 64, 0), workers=int(sys.argv[2])))
for _ in range(200):
    x, y = next(batches)
assert x.shape == (64, 3072)
print(memory()["VmHWM"] - before["VmHWM"])
"""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.heavy)])
def test_memory_does_not_grow_with_the_file(tmp_path, workers):
    """200 batches of a file of 1 GB, sparse on the disk, after all of it was looked through."""
    file = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype="f4", shape=(87_381, 3072))
    file[::1000] = 1
    file.flush()
    del file
    (tmp_path / "reading.py").write_text(READING)
    command = [sys.executable, tmp_path / "reading.py", tmp_path / "big.npy", str(workers)]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 150 * 1024, out.stdout  # KiB
