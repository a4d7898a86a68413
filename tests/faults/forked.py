"""A command line in a process of its own that begins as a copy of this one: nothing is imported anew, and anything may end it."""

import ctypes
import gc
import os
import resource
import signal
import time
from collections.abc import Callable

LIMIT = 300  # seconds


def run(*argv: str, before: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """`diffcli ARGV` after `before()`: the exit code, as a shell gives it, and by how many bytes its peak memory grew.

    The copy counts its memory from what this process has now.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            from diffcli.cli import main

            before()
            begun = _peak()
            code = main([str(a) for a in argv])
            os.write(write, str(_peak() - begun).encode())
        finally:
            os._exit(code)
    os.close(write)
    deadline = time.monotonic() + LIMIT
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    with os.fdopen(read) as file:
        grown = file.read()
    code = os.waitstatus_to_exitcode(status[1])
    return (128 - code if code < 0 else code), int(grown or 0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
