"""Files that are there whole or not at all, and what to say where one cannot be written."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from diffcli.errors import DiffcliError

TEMPORARY = ".*.tmp.*"  # as a pattern; the ending stays, by which numpy and the writers of pictures choose the format
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what reading never meets


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, which is given `path`'s own at the end; a failure leaves what was there before.

    The folder must be there: one that has gone is not made anew with half of its files.
    Raises DiffcliError (exit 1) with the path, the reason and the free space.
    """
    path = Path(path)
    try:
        with _beside(path) as temporary:
            yield temporary
    except OSError as error:
        raise unwritten(path, error) from error


@contextlib.contextmanager
def flushed(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is given `path`'s name when its content is on the disk; an OSError is the caller's to explain."""
    with _beside(path, ".part") as temporary, temporary.open("wb") as file:  # no checkpoint by its ending
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _beside(path: Path, ending: str = "") -> Iterator[Path]:
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}{ending}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file such that its name holds either the old or the new content, whole."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def unwritten(path: str | Path, error: OSError) -> DiffcliError:
    """The failure as a sentence; numpy's and torch's OSErrors have no errno, and their text is said."""
    reason = error.strerror or str(error) or type(error).__name__
    elsewhere = "out=DIR on another disk" if error.errno in OF_WRITING else "another out=DIR"
    return DiffcliError(f"cannot write {path} ({reason}; {free_space(Path(path))})", elsewhere)


def free_space(path: Path) -> str:
    """What is free where `path` lies or would lie, as `12.3 GB free there`."""
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
    try:
        size = float(shutil.disk_usage(there).free)
        files = os.statvfs(there)
    except (OSError, TypeError):  # not to be had where the disk itself has gone
        return "free space unknown"
    unit = "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    inodes = ", but no room for another file" if files.f_files and not files.f_favail else ""
    return f"{size:.{0 if unit == 'bytes' else 1}f} {unit} free there{inodes}"


def as_sentence(error: OSError, folder: Path | None = None) -> DiffcliError:
    """An OSError that nobody expected, of writing into `folder` or of reading anything else."""
    name = error.filename if isinstance(error.filename, str | os.PathLike) else None
    inside = folder is not None and (name is None or Path(name).absolute().is_relative_to(folder.absolute()))
    if inside or error.errno in OF_WRITING:
        return unwritten(name or folder or "the output", error)
    return DiffcliError(f"cannot read {name} ({error.strerror})" if name else f"{type(error).__name__}: {error}")
