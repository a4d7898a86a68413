"""Rows of results on disk as they are found: memory does not grow with their number, and a run that ended early goes on."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffcli.commands.run_folder import write_text

FOLDER = "partial"
CHUNK = 256  # rows read at once


class Rows:
    """The first `count` rows of a .npy file (all of them by default); a slice is read when it is asked for.

    A memory map would do the same, but the pages that it has touched count as the program's memory.
    """

    def __init__(self, path: Path, count: int | None = None):
        self.path = path
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            (n, *rest), _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.offset = file.tell()
        self.shape = (n if count is None else count, *rest)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def whole(self) -> int:
        """Rows that the file holds from their first byte to their last, whatever its header says."""
        return (self.path.stat().st_size - self.offset) // self.row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = slice(rows.start, rows.stop).indices(len(self))
        count, at = max(0, stop - start) * math.prod(self.shape[1:]), self.offset + start * self.row_bytes
        return np.fromfile(self.path, self.dtype, count, offset=at).reshape(-1, *self.shape[1:])


def chunks(x: np.ndarray | Rows, size: int = CHUNK) -> Iterator[np.ndarray]:
    """The rows of x, `size` at a time."""
    for begin in range(0, len(x), size):
        yield x[begin : begin + size]


def save_chunks(path: Path, n: int, parts: Iterable[np.ndarray]) -> None:
    """A .npy of n rows, as numpy.save writes it, from parts of them in order."""
    with path.open("wb") as file:
        for i, part in enumerate(parts):
            if i == 0:
                _header(file, part, n)
            file.write(np.ascontiguousarray(part).data)


def _header(file: BinaryIO, like: np.ndarray, n: int) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": (n, *like.shape[1:])}
    np.lib.format.write_array_header_1_0(file, about)


class Partial:
    """Columns of n rows, a .npy file each in the folder `partial/` of a run, filled from the first row on.

    `rows` of them are whole in every column, which a program killed while it writes cannot change.  `keeps` names the columns
    that outlive the run, and where `finish` leaves them.
    """

    def __init__(self, path: Path, n: int, keeps: dict[str, str] | None = None, fresh: bool = False):
        self.folder, self.n, self.rows = path / FOLDER, n, 0
        self.targets = {name: path / target for name, target in (keeps or {}).items()}
        self._files: dict[str, int] = {}
        self.columns = [] if fresh else self._known()
        if self.columns:
            self.rows = min(self.n, *(Rows(self._path(name)).whole for name in self.columns))
        else:
            self.remove()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _known(self) -> list[str]:
        """The columns that an earlier run began; none where it did not come so far, or had another number of rows."""
        try:
            found = json.loads((self.folder / "columns.json").read_text())
            for name, target in self.targets.items():  # it ended between the last two steps of `finish`
                if not self._path(name).exists() and target.exists():
                    os.replace(target, self._path(name))
            fits = found["n"] == self.n and all(Rows(self._path(name)).shape[0] == self.n for name in found["columns"])
            return found["columns"] if fits else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def keep(self, rows: int) -> None:
        """Forget what lies beyond the first `rows`; call it before the first `append`."""
        self.rows = rows
        for name in self.columns:
            found = Rows(self._path(name))
            os.truncate(found.path, found.offset + rows * found.row_bytes)

    def append(self, **columns: np.ndarray) -> None:
        """Write the next rows `(B, …)` of every column; they are in the system's hands when this returns.

        Raises OSError with the path where they cannot be written.
        """
        if not self._files:
            self._open(columns)
        for name, values in columns.items():
            self._write(name, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        self.rows += len(next(iter(columns.values())))

    def _open(self, columns: dict[str, np.ndarray]) -> None:
        if not self.columns:
            self.columns = [*columns]
            self.folder.mkdir()
            for name, values in columns.items():
                with self._path(name).open("wb") as file:
                    _header(file, values, self.n)
            # written last: where it is, every column is
            write_text(self.folder / "columns.json", json.dumps({"n": self.n, "columns": [*columns]}))
        self._files = {name: os.open(self._path(name), os.O_WRONLY | os.O_APPEND) for name in columns}

    def _write(self, name: str, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self._files[name], data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path(name))) from error

    def __getitem__(self, name: str) -> Rows:
        """The rows of a column that are there."""
        return Rows(self._path(name), self.rows)

    def close(self) -> None:
        """Hand back the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def finish(self) -> None:
        """Leave the columns that are kept under their names beside the folder; `remove` follows when the run's record says so."""
        for name, file in self._files.items():
            if name in self.targets:
                os.fsync(file)
        self.close()
        for name, target in self.targets.items():
            os.replace(self._path(name), target)

    def remove(self) -> None:
        """Leave nothing."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
