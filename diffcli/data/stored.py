"""A .npy file that may be larger than memory: its rows are read from the disk as they are asked for."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from diffcli.data.base import Items
from diffcli.errors import UsageError

HELD = 2**26  # bytes: smaller files are read into memory at once
CHECKED = 2**32  # bytes that are looked through before any work; of a larger file so many are, evenly spread
CHUNK = 2**24  # bytes read at a time


class Stored:
    """The rows of a .npy file of numbers, of shape (N, *S), as float32 or float64; processes share what the system caches of it.

    Read by pread and not through a memory map, which would end the process where the file is cut short under it, and count what
    is cached as the process's own.  Raises UsageError, naming the file and the first item, where a row is not finite or not there.
    """

    def __init__(self, file: str, array: np.memmap):
        self.file, self.path = file, Path(file).expanduser()
        self.shape, self.source, self.offset = array.shape, array.dtype, array.offset
        self.by_columns = not array.flags.c_contiguous  # Fortran order
        wide = self.source.itemsize > (4 if self.source.kind == "f" else 2)
        self.numpy_dtype = np.float64 if wide else np.float32
        self.dtype = torch.float64 if wide else torch.float32
        self.row = self.source.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        self._handle: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handle": None}  # another process opens the file itself

    def __getitem__(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The rows at these indices, (B, *S)."""
        n = len(self)
        if isinstance(indices, range) and indices.step == 1 and 0 <= indices.start < indices.stop <= n:
            return self._converted(self._read([indices.start], len(indices)), indices)  # one piece
        found = [int(i) for i in indices]
        odd = [i for i in found if not -n <= i < n]
        if odd:
            raise IndexError(f"item {odd[0]} of {n}")
        return self._converted(self._read([i % n for i in found]), found)

    def _read(self, indices: list[int], each: int = 1) -> np.ndarray:
        """`each` rows from each of these on."""
        if self.by_columns:
            return self._from_columns([i + k for i in indices for k in range(each)])
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
        rows = np.empty((len(indices) * each, *self.shape[1:]), self.source)
        parts = rows.reshape(len(indices), -1).view(np.uint8)
        try:
            for i, part in zip(indices, parts, strict=True):
                if os.preadv(self._handle, [part], self.offset + i * self.row) != part.nbytes:
                    raise UsageError(f"{self.file} has become shorter than the {len(self)} items that it had")
        except OSError as error:
            raise UsageError(f"{self.file} can no longer be read ({error.strerror})") from error
        return rows

    def _from_columns(self, indices: list[int]) -> np.ndarray:
        """Rows that do not lie in one piece, through a map, which is dropped at once with what it has read."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)[indices]

    def _converted(self, rows: np.ndarray, indices: Sequence[int]) -> Tensor:
        rows = rows.astype(self.numpy_dtype, copy=False)
        if self.source.kind == "f":
            bad = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if bad.any():
                raise UsageError(f"{self.file}: item {indices[int(bad.argmax())]} is not finite")
        return torch.from_numpy(np.ascontiguousarray(rows))

    def chunks(self, most: int) -> Iterator[range]:
        """Ranges of items of a few MB each, in order: all of them up to `most` bytes, else so many, evenly spread."""
        size = max(1, CHUNK // max(1, self.row))
        for start in range(0, len(self), size)[:: max(1, -(-len(self) * self.row // most))]:
            yield range(start, min(start + size, len(self)))

    def check(self) -> None:
        """Look for items that are not finite: through all of a file up to CHECKED bytes.  Raises UsageError naming the first."""
        if self.source.kind == "f":
            for chunk in self.chunks(CHECKED):
                self[chunk]


@final
class StoredItems(Items):
    """Items on the disk, x (N, *S), with labels y (N,) in memory and vectors (N, k) on the disk or in memory."""

    def __init__(self, x: Stored | Tensor, y: Tensor | None = None, vectors: Stored | Tensor | None = None):
        self.x, self.vectors = x, vectors
        self.y = torch.full((len(x),), -1) if y is None else y.to(torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.x[index], self.y[index]

    def given(self, indices: Sequence[int] | Tensor, condition: str) -> Tensor:
        if condition != "vector" or self.vectors is None:
            return super().given(indices, condition)
        return self.vectors[torch.as_tensor(indices, dtype=torch.int64)].float()


@final
class Joined(Items):
    """Splits one after the other, x of the widest dtype among them."""

    def __init__(self, parts: Sequence[Items]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        dtypes = [part.__getitems__([0])[0].dtype for part in parts]
        self.dtype = dtypes[0]
        for dtype in dtypes:
            self.dtype = torch.promote_types(self.dtype, dtype)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        x, y = zip(*self._each(indices, lambda part, index: part.__getitems__(index)), strict=True)
        return torch.stack(x), torch.stack(y)

    def given(self, indices: Sequence[int] | Tensor, condition: str) -> Tensor:
        return torch.stack([row for (row,) in self._each(indices, lambda part, index: (part.given(index, condition),))])

    def _each(self, indices, read) -> list[tuple[Tensor, ...]]:
        """What `read` finds of each item, in the order of the indices."""
        index = np.asarray([int(i) for i in indices], dtype=np.int64)
        n = len(self)
        if ((index < -n) | (index >= n)).any():
            raise IndexError(f"an item outside the {n}")
        index = index % n
        number = np.searchsorted(self.ends, index, side="right")
        rows: list = [None] * len(index)
        for k in np.unique(number):
            where = np.flatnonzero(number == k)
            begin = self.ends[k - 1] if k else 0
            found = read(self.parts[k], (index[where] - begin).tolist())
            for place, *row in zip(where, *found, strict=True):
                rows[place] = tuple(
                    t.to(self.dtype) if t.is_floating_point() and i == 0 else t for i, t in enumerate(row)
                )
        return rows
