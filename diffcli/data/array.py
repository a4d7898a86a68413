"""Data from the user's own .npy files, in their own units."""

from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from diffcli.data.base import Data, TensorItems, concatenate
from diffcli.data.transform import Identity
from diffcli.errors import UsageError


@final
class Array(Data):
    """Items of .npy files of shape `(N, *S)`, N >= 1, in file order and not scaled; without labels.

    test_file, val_file: files of those splits; a split without one is all of `file`, and held_out is then False.
    float64 and integers of 32 bits or more are held as float64, the rest as float32.
    """

    units = "values"

    def __init__(self, file: str, test_file: str | None = None, val_file: str | None = None):
        super().__init__()
        if not file:
            raise UsageError("data=array needs data.file", "data.file=points.npy of shape (N, *S)")
        self.file, self.test_file, self.val_file = file, test_file, val_file
        self.held_out = test_file is not None
        self.transform = Identity()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._main.x.shape[1:])

    @cached_property
    def _main(self) -> TensorItems:
        return TensorItems(load_array(self.file))

    def _load(self, name: str) -> TensorItems:
        if name == "all":
            files = [self.val_file, self.test_file]
            return concatenate([self._main, *(self._read(file) for file in files if file)])
        return self._read({"train": None, "val": self.val_file, "test": self.test_file}[name])

    def _read(self, file: str | None) -> TensorItems:
        if file is None:
            return self._main
        x = load_array(file)
        if x.shape[1:] != self._main.x.shape[1:]:
            raise UsageError(
                f"items of {file} have shape {tuple(x.shape[1:])}, those of {self.file} {self.shape}, not the same"
            )
        return TensorItems(x)


def load_array(file: str) -> Tensor:
    """Read a .npy file of shape `(N, *S)`, N >= 1, as float32 or float64, in its own units.

    Raises UsageError for a file that is missing or no .npy, an unfit shape or dtype, and at the first non-finite item.
    """
    path = Path(file).expanduser()
    try:
        x = np.load(path, allow_pickle=False)
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
    # float32 holds every integer of 16 bits, and no more than 24.
    wide = x.dtype.itemsize > (4 if x.dtype.kind == "f" else 2)
    x = x.astype(np.float64 if wide else np.float32, copy=False)
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if bad.any():
        raise UsageError(f"{file}: item {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(x)} are not)")
    return torch.from_numpy(np.ascontiguousarray(x))
