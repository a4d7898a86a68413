"""Signals: the handler only sets a flag; all ranks agree at a step's end, save last.ckpt and stop."""

import signal

import lightning as L

from diffcli.training.checkpoints import Checkpoints
from diffcli.training.data import SIGNALS


class GracefulStop(L.Callback):
    """After a signal, saves at the end of the optimiser step and stops; a second Ctrl-C stops at once."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints, self.signum = checkpoints, 0
        self._step = -1
        self._previous = {s: signal.getsignal(s) for s in SIGNALS}  # before Lightning registers its own

    def _flag(self, signum, frame) -> None:
        if self.signum and signum == signal.SIGINT:
            signal.default_int_handler(signum, frame)
        self.signum = signum

    def on_train_start(self, trainer, module) -> None:
        self._step = trainer.global_step
        for s in SIGNALS:  # after Lightning registered its own
            signal.signal(s, self._flag)

    def _restore(self) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def teardown(self, trainer, module, stage) -> None:
        self._restore()

    def on_exception(self, trainer, module, exception) -> None:
        self._restore()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self._step:
            return  # within an accumulation
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(bool(self.signum), all=False):
            self.signum = self.signum or signal.SIGTERM
            self.checkpoints.save_last(trainer)
            trainer.limit_val_batches = 0  # no validation on the way out
            trainer.should_stop = True

    @property
    def exit_code(self) -> int:
        """128 + n after signal n, else 0."""
        return 128 + self.signum if self.signum else 0
