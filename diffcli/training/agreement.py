"""What the processes of a training agree on: once an optimiser step, in one message."""

import math
import time

import torch
from torch import Tensor

from diffcli.training.transfer import sent

WISHES = 3  # numbers that say what a rank wishes


class Agreement:
    """What this process wishes (`signum`, `save_at`, `stop_at`), and what all agreed on before the last optimiser step.

    A signal or a clock may be seen by one process alone; what follows from it (a save, a stop) all must do at the same step.
    """

    def __init__(self):
        self.signum = 0  # that came to this process
        self.save_at = self.stop_at = math.inf  # in the seconds of time.monotonic
        self.agreed_signum, self.save, self.late = 0, False, False

    @property
    def leaving(self) -> bool:
        """Whether all know that this is the last step."""
        return self.late or self.agreed_signum > 0

    def ask(self, strategy, figures: Tensor) -> Tensor:
        """The wishes and the figures (k,) of each rank, (ranks, 3 + k), on the device of the figures."""
        now = time.monotonic()
        wishes = torch.tensor([self.signum, now >= self.stop_at, now >= self.save_at], dtype=figures.dtype)
        return _gathered(strategy, torch.cat([sent(wishes, figures.device), figures]))

    @staticmethod
    def figures(rows):
        """What of such rows is figures."""
        return rows[:, WISHES:]

    def agree(self, rows: list[list[float]]) -> list[list[float]]:
        """Agree on what was asked, now that it is known here; returns the figures of each rank."""
        self._agree([row[:WISHES] for row in rows])
        return [row[WISHES:] for row in rows]

    def leave(self, strategy, device: torch.device) -> bool:
        """Agree on nothing but whether to leave: between the batches of a validation."""
        wishes = [self.signum, time.monotonic() >= self.stop_at, False]
        self._agree(_gathered(strategy, torch.tensor(wishes, dtype=torch.float32, device=device)).tolist())
        return self.leaving

    def _agree(self, rows: list[list[float]]) -> None:
        signums, late, save = zip(*rows, strict=True)
        self.agreed_signum, self.late, self.save = int(max(signums)), any(late), any(save)


def _gathered(strategy, mine: Tensor) -> Tensor:
    return strategy.all_gather(mine).view(-1, len(mine))
