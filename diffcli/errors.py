"""Failures that are expected, each with the exit code that scripts rely on."""

import os
import shutil
from pathlib import Path


class DiffcliError(Exception):
    """Something failed in a way that a sentence explains; the command prints it without a traceback.

    message: one sentence, what is wrong and where.  hint: what would fit, or a command to try.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message, hint)  # both, so that it can be sent to another process
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(DiffcliError):
    """A bad name, value, file or combination: nothing was started."""

    exit_code = 2


class CheckpointError(DiffcliError):
    """A checkpoint that cannot be read, or that is refused because loading it could run code."""

    exit_code = 3


class NumericalError(DiffcliError):
    """A non-finite value, or a solver that cannot go on."""

    exit_code = 4


def unwritable(path: str | os.PathLike, error: OSError) -> DiffcliError:
    """What to say of a file or folder that could not be written: its path, the system's reason, and the space left there."""
    there = next((p for p in (Path(path), *Path(path).absolute().parents) if p.exists()), Path("/"))
    reason = error.strerror or str(error)
    try:
        free = f"; {shutil.disk_usage(there).free / 1e6:,.0f} MB free there"
    except OSError:  # the file system is gone
        free = ""
    return DiffcliError(f"cannot write {path} ({reason}{free})", "another out=DIR, or make room there")
