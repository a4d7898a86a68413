"""Labels of items in a file of their own."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.errors import UsageError

MOST = 10_000  # classes: more are no labels but numbers


class Labels:
    """The classes of a .npy `(N,)` of words or whole numbers: its sorted values, by their names; -1 is no label.

    Raises UsageError for a file that is missing or no .npy, another shape or dtype, and fewer than 1 or over 10,000 classes.
    """

    def __init__(self, file: str):
        self.file = file

    @cached_property
    def _values(self) -> np.ndarray:
        found = np.unique(read_labels(self.file))
        found = found[found != -1] if found.dtype.kind == "i" else found
        if not 1 <= len(found) <= MOST:
            raise UsageError(
                f"{self.file} has {len(found)} different labels, which must be from 1 to {MOST:,}",
                "numbers that are no classes are data.vectors, of shape (N, k)",
            )
        return found

    @property
    def names(self) -> list[str]:
        """One for each class."""
        return [str(value) for value in self._values.tolist()]

    def read(self, file: str) -> Tensor:
        """The classes (N,) int64 of a file; raises UsageError for a label that `names` does not have."""
        found = read_labels(file)
        none = found == -1 if found.dtype.kind == "i" else np.zeros(len(found), bool)
        if found.dtype.kind != self._values.dtype.kind:
            raise UsageError(f"{file} has labels of dtype {found.dtype}, {self.file} of {self._values.dtype}")
        index = np.searchsorted(self._values, found).clip(0, len(self._values) - 1)
        odd = ~none & (self._values[index] != found)
        if odd.any():
            raise UsageError(f"{file} has the label {found[odd][0]!s}, which {self.file} has not")
        return torch.from_numpy(np.where(none, -1, index).astype(np.int64))


def read_labels(file: str) -> np.ndarray:
    """The labels (N,) of a .npy file, int64 or words.  Raises UsageError for a file or an array that is none."""
    path = Path(file).expanduser()
    try:
        y = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "there is no such file" if not path.exists() else "it is not a readable .npy file"
        raise UsageError(f"{file} cannot be loaded: {reason}", "numpy.save(file, labels) writes one") from error
    if not isinstance(y, np.ndarray) or y.ndim != 1 or len(y) == 0:
        what = "an archive" if not isinstance(y, np.ndarray) else f"of shape {y.shape}"
        raise UsageError(f"{file} is {what}, labels are one .npy of shape (N,)")
    if y.dtype.kind not in "iubU":
        raise UsageError(f"{file} has dtype {y.dtype}, labels are whole numbers or words", "labels.astype(int)")
    if y.dtype.kind == "U":
        return y
    y = y.astype(np.int64)
    if y.min() < -1:
        raise UsageError(f"{file} has the label {y.min()}; labels are 0, 1, …, and -1 for none")
    return y
