"""Signals at the outermost boundary: the first one ends a command like Ctrl-C, with a sentence and its own exit code."""

import os
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_received = 0


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
        if not _received:
            _received = signum
            raise Interrupted(signum)
        if signum == signal.SIGINT:
            os._exit(128 + signum)  # the other processes of the command end with this one
