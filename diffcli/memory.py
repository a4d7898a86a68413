"""Memory that was freed stays with the process, so that the next tensor of its size costs no page faults."""

import ctypes
import os

# glibc's own defaults give blocks of some 128 KiB and more back to the system as they are freed; the kernel then clears each page
# again when it is first touched, which takes a quarter of a U-Net's forward pass
KEEP = {  # by mallopt's numbers: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**30),
}
ACCEPTED = 2**25  # the most that an older glibc takes for the second


def keep_freed() -> None:
    """Ask the C library to keep up to 2 GiB of freed memory, here and in the processes that this one starts.

    The peak is what it was.  A threshold that the user has set in the environment stays as it is, and another C library than
    glibc, which has none, is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return
    for name, (parameter, size) in KEEP.items():
        if name not in os.environ:
            os.environ[name] = str(size if mallopt(parameter, size) or not mallopt(parameter, ACCEPTED) else ACCEPTED)
