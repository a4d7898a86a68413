"""A file of torch.save: its zip archive is checked to the last byte before anything in it is unpickled."""

import os
import pickle
import stat
import struct
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import torch

from diffcli.errors import CheckpointError, UsageError

END = struct.Struct("<4s4H2LH")  # the record that ends a zip archive: how long its directory is, and where
END64, PLACE64 = (
    struct.Struct("<4sQ2H2L4Q"),
    struct.Struct("<4sLQL"),
)  # the same before it in large files, and in torch's
LOCAL, MANY = b"PK\x03\x04", 0xFFFFFFFF  # what begins a member; what END says where only END64 has room for a place


def read_archive(path: Path, what: str = "checkpoint", make: str = "diffcli train makes one, under outputs/"):
    """What torch.save wrote to a file: tensors on the CPU and plain containers, nothing else was ever unpickled.

    Checked and read through one open file, so that what is checked is what is read.  Raises UsageError where there is no such
    file, CheckpointError with one sentence for anything else that is wrong with it.
    """
    with _open(path, what, make) as file:
        try:
            _check(file, path)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tensors that are refused by what reads them
                return torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointError:
            raise
        except pickle.UnpicklingError:
            raise CheckpointError(f"{path} is refused: it holds Python objects, which may run code") from None
        except Exception as error:  # noqa: BLE001 - damaged files fail in many ways inside zipfile and torch
            raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None


def glance(path: Path):
    """The same without the tensors' values, which stay on the disk, and without a look at the checksums: to know a file by.

    Raises what `read_archive` raises, and whatever torch makes of a damaged file.
    """
    with _open(path, "checkpoint", "") as file:
        _check(file, path, sums=False)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _open(path: Path, what: str, make: str) -> BinaryIO:
    try:
        # a pipe would be waited for
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no {what} {path}", make) from None
    except IsADirectoryError:
        raise _folder(path, what) from None
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        raise CheckpointError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError(f"{path} is no {what}, it is no file at all")
    return file


def _folder(path: Path, what: str) -> CheckpointError:
    last = path / "checkpoints" / "last.ckpt"
    return CheckpointError(f"{path} is a folder, not a {what}", f"ckpt={last}" if last.exists() else "")


def _check(file: BinaryIO, path: Path, sums: bool = True) -> None:
    """Refuse an archive that torch.save would not have written, or that another program could read in another way.

    Its members are not compressed (a small file cannot grow), of one folder, of different names, one behind the other from the
    first byte to the directory, and where `sums` are asked for, their checksums hold.
    """
    directory = _directory(file)
    if directory is None:
        raise CheckpointError(f"{path} is no checkpoint of diffcli, or it was cut short")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
            raise CheckpointError(f"{path} is refused: its archive has several members of one name, or several folders")
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
            raise CheckpointError(f"{path} is refused: its archive is compressed, which torch.save never does")
        ends = [*(m.header_offset for m in members), archive.start_dir]
        room = [after - before for before, after in pairwise(ends)]
        if (
            ends[0] != 0
            or ends[-1] != directory
            or any(m.file_size >= space for m, space in zip(members, room, strict=True))
        ):
            raise CheckpointError(f"{path} is refused: the members of its archive overlap")
        bad = archive.testzip() if sums else None
    if bad is not None:
        raise CheckpointError(f"{path} is damaged (checksum of {bad.rpartition('/')[2]!r})")


def _directory(file: BinaryIO) -> int | None:
    """Where a zip archive that fills a file says that its directory is; None for a file that is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begins = file.read(len(LOCAL)) == LOCAL
    file.seek(max(0, size - END.size - PLACE64.size - END64.size))
    tail = file.read()
    if not begins or len(tail) < END.size:
        return None
    mark, *_, start, comment = END.unpack(tail[-END.size :])
    if mark != b"PK\x05\x06" or comment:
        return None
    tail = tail[: -END.size]
    if tail[-PLACE64.size :][:4] != b"PK\x06\x07":
        return start
    _, _, place, _ = PLACE64.unpack(tail[-PLACE64.size :])
    *_, long_start = END64.unpack(tail[: END64.size])
    fits = place == size - END.size - PLACE64.size - END64.size and start in (long_start, MANY)
    return long_start if fits else None
