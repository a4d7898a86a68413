"""Signals and the time limit: handlers only set a flag; all ranks agree at a step, save last.ckpt and stop."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import lightning as L

from diffcli.signals import SIGNALS, failing
from diffcli.training.agreement import Agreement
from diffcli.training.checkpoints import Checkpoints


class GracefulStop(L.Callback):
    """After a signal, or `seconds` from now, saves at the end of the optimiser step and stops; a second Ctrl-C stops at once.

    A validation that is under way is broken off behind its batch and leaves no figures.  Its handlers are in place while
    `listening`.
    """

    def __init__(
        self, checkpoints: Checkpoints, agreement: Agreement, seconds: float | None = None, tells: bool = True
    ):
        self.checkpoints, self.agreement, self.tells = checkpoints, agreement, tells
        self.stopped = False
        self._step = -1
        if seconds is not None:
            agreement.stop_at = time.monotonic() + seconds

    @contextlib.contextmanager
    def listening(self, trainer) -> Iterator[None]:
        """While Lightning trains, signals come here: its own answer to SIGTERM is a message to the other ranks from within
        the handler, for which they may wait for ever, and under SLURM a requeue."""
        trainer._signal_connector.register_signal_handlers = _nothing
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # of nohup, and of a script's background
        previous = {s: signal.signal(s, self._flag) for s in heard}
        try:
            yield
        except Exception:
            failing()
            raise
        except SystemExit as error:  # Lightning's word for a KeyboardInterrupt
            raise KeyboardInterrupt from error
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)

    def _flag(self, signum, frame) -> None:
        if self.agreement.signum and signum == signal.SIGINT:
            signal.default_int_handler(signum, frame)
        if not self.agreement.signum and self.tells:  # not print: it may be what was interrupted
            again = "; Ctrl-C stops at once" if signum == signal.SIGINT else ""
            os.write(2, f"{signal.Signals(signum).name}: saving after this step{again}\n".encode())
        self.agreement.signum = signum

    def on_train_start(self, trainer, module) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self._step:
            return  # within an accumulation
        self._step = trainer.global_step
        if self.agreement.leaving:
            self._leave(trainer)

    def on_validation_batch_end(self, trainer, module, *_) -> None:
        if self.agreement.leave(trainer.strategy, module.device):
            raise StopIteration  # the end of the data, for Lightning

    def on_validation_end(self, trainer, module) -> None:
        if self.agreement.leaving and not trainer.sanity_checking:
            self._leave(trainer)

    def _leave(self, trainer) -> None:
        self.checkpoints.save_last(trainer)
        trainer.limit_val_batches = 0  # no validation on the way out
        trainer.should_stop = self.stopped = True

    @property
    def exit_code(self) -> int:
        """128 + n after signal n, else 0: the time limit is what was asked for."""
        signum = self.agreement.agreed_signum or self.agreement.signum
        return 128 + signum if signum else 0


def _nothing(*_) -> None:
    """In the place of what Lightning does about signals."""
