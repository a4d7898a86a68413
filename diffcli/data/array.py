"""Data from the user's own .npy files, in their own units."""

from functools import cached_property
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from diffcli.data import stored
from diffcli.data.base import Data, Items, TensorItems, concatenate
from diffcli.data.label_file import Labels
from diffcli.data.stored import Joined, Stored, StoredItems
from diffcli.data.transform import Identity
from diffcli.errors import UsageError


@final
class Array(Data):
    """Items of .npy files of shape `(N, *S)`, N >= 1, in file order and not scaled.

    test_file, val_file: files of those splits; a split without one is all of `file`, and held_out is then False.
    labels: .npy `(N,)` of words or whole numbers, one an item of `file`; the classes are its sorted values, of which -1 is none.
    vectors: .npy `(N, k)`, the condition vector of each item, not scaled.  A split with a file of its own has its own ones.
    float64 and integers of 32 bits or more are given as float64, the rest as float32.  Files of 64 MiB and more stay on the disk
    and are read batch by batch; beyond 4 GiB a part of them, evenly spread, is checked for finite values before any work, and
    every batch when it is read.
    Raises UsageError without a file, for labels or vectors that a split lacks, and when loading for unfit files.
    """

    units = "values"

    def __init__(
        self,
        file: str,
        test_file: str | None = None,
        val_file: str | None = None,
        labels: str | None = None,
        test_labels: str | None = None,
        val_labels: str | None = None,
        vectors: str | None = None,
        test_vectors: str | None = None,
        val_vectors: str | None = None,
    ):
        super().__init__()
        if not file:
            raise UsageError("data=array needs data.file", "data.file=points.npy of shape (N, *S)")
        self.file, self.test_file, self.val_file = file, test_file, val_file
        self.labels, self.vectors = labels, vectors
        self.beside = {  # file -> its labels and vectors
            "train": (labels, vectors),
            "val": (val_labels, val_vectors),
            "test": (test_labels, test_vectors),
        }
        for split, own in (("val", val_file), ("test", test_file)):
            for name, main, its in zip(("labels", "vectors"), (labels, vectors), self.beside[split], strict=True):
                if (its is not None) != (main is not None and own is not None):
                    what = "lacks" if its is None else "has no use for"
                    fits = f"data.{split}_{name}=FILE.npy of the items of data.{split}_file, beside data.{name}"
                    raise UsageError(f"data=array {what} data.{split}_{name}", fits)
        self.held_out = test_file is not None
        self.transform = Identity()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._main.x.shape[1:])

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        return [] if self.labels is None else self._labels.names

    @property
    def vector(self) -> int:
        return 0 if self.vectors is None else self._main.vectors.shape[1]

    @property
    def notes(self) -> tuple[str, ...]:
        files = (
            self.file,
            self.test_file,
            self.val_file,
            *(file for beside in self.beside.values() for file in beside),
        )
        large = [f for f in dict.fromkeys(files) if f and Path(f).expanduser().stat().st_size > stored.CHECKED]
        return tuple(
            f"{f}: a part was looked through for values that are not finite, the rest as it is read" for f in large
        )

    @cached_property
    def _labels(self) -> Labels:
        return Labels(self.labels)

    @cached_property
    def _main(self) -> TensorItems | StoredItems:
        return self._with("train", open_array(self.file))

    def _with(self, split: str, x: Tensor | Stored) -> TensorItems | StoredItems:
        """Items with the labels and vectors of their split."""
        labels, vectors = self.beside[split]
        y = None if labels is None else self._labels.read(labels)
        vectors = None if vectors is None else open_array(vectors)
        for name, found in (("labels", y), ("vectors", vectors)):
            if found is not None and len(found) != len(x):
                raise UsageError(f"{len(found)} {name} for {len(x)} items of the {split} split of data=array")
        if vectors is not None and len(vectors.shape) != 2:
            raise UsageError(f"data.vectors must have the shape (N, k), not {tuple(vectors.shape)}")
        if vectors is not None and split != "train" and vectors.shape[1] != self.vector:
            raise UsageError(
                f"data.{split}_vectors have {vectors.shape[1]} numbers an item, data.vectors {self.vector}"
            )
        held = isinstance(x, Tensor) and (vectors is None or isinstance(vectors, Tensor))
        return TensorItems(x, y, vectors) if held else StoredItems(x, y, vectors)

    def _load(self, name: str) -> Items:
        if name == "all":
            own = {"val": self.val_file, "test": self.test_file}
            parts = [self._main, *(self._read(split) for split, file in own.items() if file)]
            held = all(isinstance(part, TensorItems) for part in parts)
            return concatenate(parts) if held else parts[0] if len(parts) == 1 else Joined(parts)
        return self._read(name)

    def _read(self, split: str) -> TensorItems | StoredItems:
        file = {"train": None, "val": self.val_file, "test": self.test_file}[split]
        if file is None:
            return self._main
        x = open_array(file)
        if x.shape[1:] != self._main.x.shape[1:]:
            raise UsageError(
                f"items of {file} have shape {tuple(x.shape[1:])}, those of {self.file} {self.shape}, not the same"
            )
        return self._with(split, x)


_looked_through: set[tuple[str, int, int]] = set()  # files of this process, by path, time and size


def open_array(file: str) -> Tensor | Stored:
    """The same as `load_array` of a file of less than `stored.HELD` bytes; a larger one stays on the disk."""
    path = Path(file).expanduser()
    if not path.is_file() or path.stat().st_size < stored.HELD:
        return load_array(file)
    found = Stored(file, _read(file, "r"))
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    if key not in _looked_through:
        found.check()
        _looked_through.add(key)
    return found


def load_array(file: str) -> Tensor:
    """Read a .npy file of shape `(N, *S)`, N >= 1, as float32 or float64, in its own units.

    Raises UsageError for a file that is missing or no .npy, an unfit shape or dtype, and at the first non-finite item.
    """
    x = _read(file, None)
    # float32 holds every integer of 16 bits, and no more than 24.
    wide = x.dtype.itemsize > (4 if x.dtype.kind == "f" else 2)
    x = x.astype(np.float64 if wide else np.float32, copy=False)
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if bad.any():
        raise UsageError(f"{file}: item {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(x)} are not)")
    return torch.from_numpy(np.ascontiguousarray(x))


def _read(file: str, mode: Literal["r"] | None) -> np.ndarray:
    path = Path(file).expanduser()
    try:
        x = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "there is no such file" if not path.exists() else "it is not a readable .npy file of numbers"
        raise UsageError(f"{file} cannot be loaded: {reason}") from error
    if not isinstance(x, np.ndarray):
        raise UsageError(f"{file} is an .npz archive, not one .npy array", "numpy.save(file, x) writes one")
    if x.dtype.kind not in "fiu":
        raise UsageError(f"{file} has dtype {x.dtype}, not floats or integers")
    if x.ndim < 2 or x.size == 0:
        raise UsageError(
            f"{file} has shape {x.shape}, not (N, *S) with N >= 1", "numbers on a line are of shape (N, 1)"
        )
    return x
