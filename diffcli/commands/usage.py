"""Time and memory, in numbers and in words."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch


def peak_memory(device: torch.device | str = "cpu") -> int:
    """The most bytes that this process has held at once: allocated on a GPU, else resident."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):  # what getrusage says may be of the process that started this one
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder on the disk on which `path` would be, if one may write there, which leaves nothing."""
    there = next(parent for parent in path.resolve().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".dry_run-", dir=there if os.access(there, os.W_OK) else None) as folder:
        yield Path(folder)


def duration(seconds: float) -> str:
    """Three digits of it: 4.56 ms, 12.3 s, 12 min 3 s, 5 h 7 min."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    return f"{int(minutes / 60):,} h {int(minutes % 60)} min"


def volume(size: float) -> str:
    """Three digits of bytes."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
