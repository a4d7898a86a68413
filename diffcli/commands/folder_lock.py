"""One writer a run folder: a record lock that ends with its process, however that one ends."""

import errno
import fcntl
import os
import platform
import sys
from pathlib import Path

from diffcli.errors import UsageError

NAME = ".lock"  # in the run's folder while the run lasts; one that a killed process left holds nobody up
UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems without locks

_held: set[tuple[int, int]] = (
    set()
)  # within one process a second lock would succeed, and its close would free the first


class FolderLock:
    """The lock on `folder`, held until `free`.  Raises UsageError that names the holder, OSError if it cannot be written.

    A POSIX record lock (fcntl): it is freed when its process ends, by kill -9 too, though forked data workers live on, which
    flock's would not be; and over NFS it holds between machines.  Closing any descriptor of the file would free it.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        while not self._opened():
            pass  # the holder of before has removed the file in between
        _held.add(self._key)
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {platform.node()}\n".encode())
        except OSError:
            self.free()
            raise

    def _opened(self) -> bool:
        if self.path.exists() and _key(os.stat(self.path)) in _held:
            raise self._refusal(f"process {os.getpid()}, this one")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNKNOWN:
                holder = os.read(self._file, 200).decode(errors="replace").strip()
                os.close(self._file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise self._refusal(holder or "another process") from None
                raise
            print(
                f"warning: no locks in {self.folder} ({error.strerror}): keep other runs out of it yourself",
                file=sys.stderr,
            )
        self._key = _key(os.fstat(self._file))
        if self.mine():
            return True
        os.close(self._file)
        return False

    def _refusal(self, holder: str) -> UsageError:
        return UsageError(f"out={self.folder} is being written by another run ({holder})", "another out=DIR")

    def mine(self) -> bool:
        """Whether the folder is still the one that was locked, neither removed nor made anew."""
        try:
            return _key(os.stat(self.path)) == self._key
        except OSError:
            return False

    def free(self) -> None:
        """Give the folder up; twice is once."""
        if self._key not in _held:
            return
        try:
            if self.mine():
                self.path.unlink()  # before it is freed: another run that has opened it sees that, and opens the new one
        except OSError:
            pass  # left behind, it holds nobody up
        os.close(self._file)
        _held.discard(self._key)


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
