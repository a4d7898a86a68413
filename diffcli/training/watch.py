"""Each rank watches the others: one that fails, dies or does not come ends the training, and is named."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

import lightning as L
import torch

from diffcli.errors import DiffcliError
from diffcli.training.processes import Processes
from diffcli.training.ranks import GRACE, get, look, put, where

PERIOD = 0.5  # seconds between two signs of life
SILENCE = 10  # such periods without one, and a rank is taken for dead
FIRST = 15.0  # seconds that a process group's own time-out is let go first: it reaches the main thread, where it can
SYMPTOMS = ("gloo", "nccl", "c10d", "connection", "tcpstore", "timed out", "socket")  # of another rank's end


class Watch(L.Callback):
    """A thread of each rank that says where the rank is, hears of failures, and ends the process where nothing else can.

    A rank whose main thread has waited `timeout` seconds in one place asks who has not come.  A failure of any rank, by what
    it said, by its process's end or by its silence, becomes one DiffcliError in all of them (`cause`).  Where the main thread
    cannot be reached, as in a collective on GPUs, `last_words(error)` is called and the process ends with the error's code.
    """

    def __init__(
        self, processes: Processes, timeout: float, children: list, last_words: Callable[[DiffcliError], None]
    ):
        self.processes, self.timeout, self.children, self.last_words = processes, timeout, children, last_words
        self.count, self.place, self.since = 0, "starting", time.monotonic()
        self.patience = timeout + FIRST
        self.alone = False  # without rank 0, which would have said what has happened
        self.step = 0
        self._stop, self._beat = threading.Event(), 0
        self._store = processes.another(timeout)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")

    def start(self) -> None:
        self._say()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(GRACE)

    # -- where this rank is

    def _at(self, place: str) -> None:
        self.count, self.place, self.since = self.count + 1, place, time.monotonic()

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step
        self._at(f"before step {self.step + 1}")

    def on_train_batch_start(self, trainer, module, *_) -> None:
        self.step = trainer.global_step + 1
        self._at(f"in step {self.step}")

    def on_before_backward(self, trainer, module, loss) -> None:
        self._at(f"in step {self.step}, at its gradients")  # where the ranks wait for each other

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self._at(f"after step {trainer.global_step} (saving, a preview, or reading data)")

    def on_validation_batch_start(self, trainer, module, batch, index, *_) -> None:
        self._at(f"in validation batch {index} after step {trainer.global_step}")

    def on_validation_end(self, trainer, module) -> None:
        self._at(f"after the validation at step {trainer.global_step}")

    # -- what is said

    def _say(self) -> None:
        self._beat += 1
        said = {"beat": self._beat, "count": self.count, "place": self.place, "where": where()}
        put(self._store, f"at/{self.processes.rank}", said)

    def fail(self, error: BaseException, rank: int | None = None) -> None:
        """Let all ranks know why the training cannot go on; the first to say so is heard."""
        code = error.exit_code if isinstance(error, DiffcliError) else 1
        text = error.message if isinstance(error, DiffcliError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        word = {"rank": self.processes.rank if rank is None else rank, "text": text, "code": code, "trace": trace}
        word["hint"] = getattr(error, "hint", "")
        if self._store.add("failures", 1) == 1:
            put(self._store, "failed", word)

    def _failure(self) -> DiffcliError | None:
        word = look(self._store, "failed")
        if word is None:
            return None
        return _error(word, word["rank"] != self.processes.rank)

    def raise_failure(self) -> None:
        """Raise the DiffcliError of a rank that has failed or ended, if any has."""
        found = self._failure() or self._lost_child()
        if found is not None:
            raise found

    # -- what has happened

    def cause(self, error: BaseException) -> DiffcliError | None:
        """Another rank's failure that this rank's `error` follows from; None if it is its own, which the others now hear of."""
        try:
            known = self._failure()
            if not _follows(error):
                if known is None:
                    self.fail(error)
                return None
            found = self._failure() or self._lost_child() or self._behind()
            if found is None:
                self.fail(error)
            elif self._failure() is None:
                self.fail(found)
            return found
        except RuntimeError:  # the store ended with rank 0
            return self._gone() if self.processes.rank else None

    def _lost_child(self) -> DiffcliError | None:
        for rank, process in self.children:
            code = process.poll()
            if code is not None and (code < 0 or 0 < code < 128):
                return DiffcliError(f"rank {rank} ended in the middle of its work ({_ending(code)})", KILLED)
        return None

    def _behind(self) -> DiffcliError | None:
        """Who has not come: a rank without a sign of life, else those that are behind the others."""
        everyone = range(self.processes.size)
        first, silent = self._places(), set(everyone) - {self.processes.rank}
        for _ in range(SILENCE):
            if not silent:
                break
            time.sleep(PERIOD)
            found = self._failure()
            if found is not None:
                return found
            now = self._places()
            silent = {rank for rank in silent if now[rank]["beat"] == first[rank]["beat"]}
        most = max(first[rank]["count"] for rank in everyone)
        behind = sorted(silent) or [rank for rank in everyone if first[rank]["count"] < most]
        if not behind:
            return None
        last = first[behind[0]]
        names = f"rank {behind[0]}" if len(behind) == 1 else "ranks " + ", ".join(map(str, behind[:8]))
        what = "no longer answers" if silent else f"did not come within {self.timeout:g} s"
        others = "" if len(behind) > 1 else f" ({last['where']})"
        return DiffcliError(f"{names} {what}: last seen {last['place']}{others}", LATE)

    def _places(self) -> dict[int, dict]:
        return {rank: get(self._store, f"at/{rank}") for rank in range(self.processes.size)}

    # -- the thread

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self._say()
                found = self._failure() or self._lost_child() or self._waited()
            except RuntimeError:
                found = self._gone()
            if found is not None and not self._stop.is_set():
                return self._end(found)

    def _waited(self) -> DiffcliError | None:
        since = self.since
        if time.monotonic() - since < self.patience:
            return None
        found = self._behind()
        if found is None and self.since == since:
            found = DiffcliError(f"no rank has gone on for {self.timeout:g} s: {self.place}", LATE)
        return found if self.since == since else None  # it has just gone on

    def _gone(self) -> DiffcliError:
        self.alone = True
        return DiffcliError("rank 0 ended in the middle of its work", KILLED)

    def _end(self, found: DiffcliError) -> None:
        try:
            if self._failure() is None:
                self.fail(found)
        except RuntimeError:
            pass  # there is nobody left to hear it
        if self._stop.wait(GRACE):
            return
        if self.processes.rank == 0 or self.alone:
            self.last_words(found)
        with contextlib.suppress(RuntimeError):
            put(self._store, f"left/{self.processes.rank}", True)
        for _, process in self.children:
            process.send_signal(signal.SIGKILL)
        sys.stdout.flush()
        os._exit(found.exit_code)


KILLED = "resume=auto goes on from the last checkpoint; a process is killed where memory runs out"
LATE = "resume=auto goes on from the last checkpoint; timeout=SECONDS allows more"


def _error(word: dict, foreign: bool) -> DiffcliError:
    """A rank's failure as it was said, with its trace for error.log."""
    named = f"rank {word['rank']}: " if foreign and "rank " not in word["text"] else ""
    error = DiffcliError(named + word["text"], word["hint"])
    error.exit_code = word["code"]
    error.add_note(f"rank {word['rank']}:\n{word['trace']}")
    return error


def _follows(error: BaseException) -> bool:
    """Whether an error is what a rank sees when another has ended or does not come."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(word in text for word in SYMPTOMS)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
