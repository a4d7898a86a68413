"""What is seen while training: a bar on a terminal, a line now and then in a pipe."""

import math
import sys
import time

import lightning as L
from tqdm import tqdm

LINE_SECONDS = 15  # between two lines where there is no terminal


class Progress(L.Callback):
    """Loss, samples a second and time left; also puts samples_per_second into the metrics."""

    def __init__(self, samples_per_batch: int, max_steps: int):
        self.samples, self.max_steps = samples_per_batch, max_steps
        self.loss, self.rate, self.warned = math.nan, None, False

    def on_train_start(self, trainer, module) -> None:
        self.first = self.step = trainer.global_step
        self.begun = self.mark = self.line = time.monotonic()
        self.batches = 0
        self.bar = None
        if trainer.is_global_zero and sys.stderr.isatty():
            self.bar = tqdm(total=self.max_steps, initial=self.step, desc="training", unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer, module, outputs, *_) -> None:
        self.batches += 1
        step = trainer.global_step
        if step == self.step:
            return
        self.step = step
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        if step % trainer.log_every_n_steps == 0 or step == self.max_steps:
            now = time.monotonic()
            self.rate = self.batches * self.samples / max(now - self.mark, 1e-9)
            self.mark, self.batches = now, 0
            loss = module.journal.latest.get("loss", math.nan)  # before the first that was read
            self.loss = 0.9 * self.loss + 0.1 * loss if self.loss == self.loss else loss
            module.journal.also(samples_per_second=self.rate)
            self._warn(trainer, module)
            self._show(trainer, now)

    def _warn(self, trainer, module) -> None:
        """What the loss has to say about its value, once."""
        sentence = None if self.warned else module.loss.warning(self.loss)
        if sentence and trainer.is_global_zero:
            self.warned = True
            tqdm.write(f"warning: {sentence}", file=sys.stderr)

    def _show(self, trainer, now: float) -> None:
        text = f"loss {self.loss:.4f}, {self.rate:.0f} samples/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif trainer.is_global_zero and (now - self.line >= LINE_SECONDS or self.step == self.max_steps):
            left = (now - self.begun) / max(self.step - self.first, 1) * (self.max_steps - self.step)
            print(f"step {self.step}/{self.max_steps}, {text}, {left:.0f} s left", flush=True)
            self.line = now

    def on_train_end(self, trainer, module) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer, module, exception) -> None:
        if getattr(self, "bar", None) is not None:
            self.bar.close()
