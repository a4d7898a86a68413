"""A training that ends after a few steps, with the time of each of its parts."""

import time
from dataclasses import dataclass

import lightning as L
import torch

from diffcli.training.checkpoints import Checkpoints
from diffcli.training.preview import Preview
from diffcli.training.resumption import validate

WINDOW = 3.0  # seconds of steps that are measured, where they are short
LEAST, MOST = 2, 100  # of those steps
LONG = 5.0  # seconds of a part that is not done a second time


@dataclass(frozen=True)
class Lap:
    """Seconds by the clock, and of this process's CPU time."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Lap") -> "Lap":
        return Lap(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Lap") -> "Lap":
        return self + -1 * other

    def __rmul__(self, factor: float) -> "Lap":
        return Lap(factor * self.wall, factor * self.cpu)


class Trial(L.Callback):
    """Times the first step with all that is before it, LEAST to MOST steps after it, and a validation, a preview and a checkpoint
    twice: the first of each has work that comes once.

    It must be the last callback.  None of these comes at the time at which it is due, and the training ends after them.
    twice: also what takes LONG, as where its first is compiled.
    """

    def __init__(self, twice: bool = False):
        self.twice = twice
        self.laps: dict[str, list[Lap]] = {}
        self.first = 0  # the step that it began at
        self.saved = 0  # bytes of a checkpoint
        self._mark = _now()

    def watch(self, checkpoints: Checkpoints, preview: Preview | None) -> "Trial":
        """What it is to time; all that is timed comes after this."""
        self._checkpoints, self._preview, self._mark = checkpoints, preview, _now()
        return self

    def lap(self, name: str, times: int = 1) -> None:
        """The time since the last lap is that of so many `name`."""
        now = _now()
        self.laps.setdefault(name, []).append(1 / times * (now - self._mark))
        self._mark = now

    def on_train_start(self, trainer, module) -> None:
        self.first = self._step = trainer.global_step
        self._validates = bool(trainer.enable_validation)
        trainer.val_check_batch = self._checkpoints.every = float("inf")
        self._shows = self._preview is not None and bool(self._preview.every) and module.denoiser.sde.is_process
        if self._preview is not None and self._preview.every:
            self._preview.every = 2**62  # 0 is never, at the end too

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self._step:
            return  # within an accumulation
        self._step = trainer.global_step
        done = self._step - self.first
        if done == 1:
            self.lap("start")
            trainer.fit_loop.epoch_loop.max_steps = -1  # of a training that may have fewer steps than this
        elif done == 1 + LEAST:
            a_step = (_now() - self._mark).wall / LEAST
            self._window = LEAST + trainer.strategy.broadcast(max(0, min(MOST, int(WINDOW / a_step)) - LEAST))
        if done >= 1 + LEAST:
            self._go_on(trainer, module, done - 1)

    def _go_on(self, trainer, module, done: int) -> None:
        if done == self._window:
            self.lap("step", done)
            self._parts(trainer, module)
        elif done == self._window + 1:  # a checkpoint is of another step than the last one
            self.lap("step between")
            self._parts(trainer, module)
            trainer.limit_val_batches, trainer.should_stop = 0, True

    def _parts(self, trainer, module) -> None:
        parts = {"checkpoint": lambda: self._checkpoints.save_last(trainer)}
        if self._validates:
            parts["validation"] = lambda: self._validate(trainer)
        if self._shows:
            parts["preview"] = lambda: self._preview.show(trainer, module)
        for name, do in parts.items():
            long = bool(self.laps.get(name)) and self.laps[name][0].wall > LONG and not self.twice
            if not trainer.strategy.broadcast(long):
                do()
                self.lap(name)

    def _validate(self, trainer) -> None:
        self._checkpoints.best = float("inf")  # every one is the best so far
        validate(trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self.saved = sum(t.numel() * t.element_size() for t in _tensors(checkpoint))


def _now() -> Lap:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Lap(time.monotonic(), time.process_time())


def _tensors(content):
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)
