"""Signals at the outermost boundary: the first one ends a command like Ctrl-C, with a sentence and its own exit code."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

LAUNCHERS = (signal.SIGTERM, signal.SIGUSR1)  # what a launcher sends to the ranks that are left of a failure

_received = 0
_held = False
_failing = False


class Interrupted(KeyboardInterrupt):
    """Signal `signum` came.  said: the command has answered it itself, and told the user."""

    def __init__(self, signum: int, said: bool = False):
        super().__init__(signum, said)
        self.signum, self.said = signum, said

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


def received() -> int:
    """The signal that came, else 0.  What libraries make of an exception that they did not expect may hide it."""
    return _received


def check() -> None:
    """Raise Interrupted where a signal came, and a library on the way up has swallowed the exception."""
    if _received:
        raise Interrupted(_received)


def begin() -> None:
    """A job begins: the failure of the one before it has been told."""
    global _failing
    _failing = False


def failing() -> None:
    """A failure is known: until it has been told, what a launcher sends because of it must not hide it."""
    global _failing
    _failing = True
    if threading.current_thread() is threading.main_thread():
        for signum in LAUNCHERS:
            # only a process that was started for this training, and ends with it, has no handler
            if signal.getsignal(signum) == signal.SIG_DFL:
                signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Signals wait until the end of what must not be broken off, a process's start, which inherits them blocked.

    To block them is not enough in this process: another of its threads takes them, and the main one then runs the handler.
    """
    global _held
    before, _held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), True
    try:
        yield
    finally:
        _held = False
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    check()


class Interrupts:
    """While entered, the first signal raises Interrupted in the main thread; Ctrl-C after that ends the process at once.

    Other signals that come twice are one: `timeout` and schedulers send theirs to a process and again to its group.  Signals
    that are ignored stay so (nohup; a job that a shell put in the background).  Training has its own handlers while it fits.
    """

    def __init__(self):
        self._previous = {}

    def __enter__(self) -> None:
        global _received
        _received = 0
        begin()
        if threading.current_thread() is not threading.main_thread():
            return  # only there can a handler be set, and only there would it run
        for signum in SIGNALS:
            previous = signal.getsignal(signum)
            if previous not in (signal.SIG_IGN, None):
                self._previous[signum] = previous
                signal.signal(signum, self._answer)

    def __exit__(self, *_) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def _answer(self, signum, frame) -> None:
        global _received
        if _failing and signum in LAUNCHERS:
            return
        if not _received:
            _received = signum
            if not _held:
                raise Interrupted(signum)
            return
        if signum == signal.SIGINT:
            os._exit(128 + signum)  # the other processes of the command end with this one
