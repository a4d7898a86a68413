"""What each optimiser step says of itself, and what follows from it: at once, or while the next step is under way."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffcli.training.agreement import Agreement
from diffcli.training.nonfinite import refusal
from diffcli.training.spikes import LossSpike
from diffcli.training.transfer import Reading

SKIPPED = 40  # steps in a row: the scaler's factor has come from 65536 to far below 1 by then


@dataclass
class Step:
    """An optimiser step: its number, and how many batches (in all, and its own) and items had been taken when it came."""

    number: int
    batches: int
    window: int
    seen: int
    figures: Reading
    late: bool  # whether the host reads its figures only after it was taken
    row: dict[str, float] = field(default_factory=dict)
    read: bool = False
    ended: bool = False


class Journal:
    """The figures of the steps: mean loss, norm of the gradient, norm of the weights, of every rank.

    Without a lag they are read before the step is taken, and a figure that is not finite means that it never is.  With a lag of
    one step the host reads them while the device is at the next one, and never waits for the device to run dry: where the loss
    or the gradient of a rank is not finite the device itself leaves the step out, and the training ends before the next.
    """

    def __init__(self, agreement: Agreement):
        self.agreement, self.spike = agreement, LossSpike()
        self.latest: dict[str, float] = {}  # the newest of each figure
        self._step: Step | None = None
        self._skipped = 0  # steps in a row that the scaler left out

    def take(self, module, optimizer, figures: Tensor, window: int, lr: float, lag: int) -> None:
        """Note the figures (3,) of this rank for the step that is about to be taken; the one before it is read by now."""
        self.settle(module)
        rows = self.agreement.ask(module.trainer.strategy, figures)
        number = module.trainer.global_step
        self._step = Step(number, module.batches, window, module.seen, Reading(rows), lag > 0, {"lr": lr})
        if lag:
            optimizer.found_inf = (~torch.isfinite(self.agreement.figures(rows)[:, :2]).all()).float()
        else:
            self.settle(module)

    def settle(self, module) -> None:
        """Read what has not been read.  Raises NumericalError on all ranks where a figure of any of them is not finite.

        Everything that outlasts a step (a checkpoint, a validation, a preview) must come after this.
        """
        step, trainer = self._step, module.trainer
        if step is None or step.read:
            return
        step.read = True
        rows = self.agreement.agree(step.figures.read())
        fine = all(math.isfinite(figure) for row in rows for figure in row)
        self._skipped = 0 if fine else self._skipped + 1
        if not fine and (module.fused or self._skipped > SKIPPED):  # the scaler leaves out such a step
            failure = refusal(module, step, rows[module.global_rank][0])
            if failure is not None:
                raise failure
        loss = sum(row[0] for row in rows) / len(rows)
        step.row |= {"loss": loss, "grad_norm": rows[0][1]}
        spike = self.spike.see(loss) if fine else None
        if spike is not None:
            step.row["loss_spike"] = spike
        self.latest |= step.row
        if self._is_due(step, trainer):
            self.spike.reset()
        if step.ended:
            self._write(step, trainer)

    def also(self, **figures: float) -> None:
        """Add figures to the row of the step that was taken last."""
        if self._step is not None:
            self._step.row |= figures
            self.latest |= figures

    def end(self, trainer, waited) -> None:
        """The step has been taken, with all that follows it; `waited()` is the share of time that went into waiting for data."""
        step = self._step
        if step is None or step.ended or step.number >= trainer.global_step:
            return  # within an accumulation
        step.ended = True
        if self._is_due(step, trainer):
            step.row["data_wait"] = waited()
        if step.read:
            self._write(step, trainer)

    def _is_due(self, step: Step, trainer) -> bool:
        return (step.number + 1) % trainer.log_every_n_steps == 0

    def _write(self, step: Step, trainer) -> None:
        if self._is_due(step, trainer) or trainer.should_stop:
            for logger in trainer.loggers:
                logger.log_metrics(metrics=dict(step.row), step=step.number)
                logger.save()
