"""What the SDEs of a user's own functions share: they are checked on a fine grid, and inverted by root finding."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from diffcli.diffusion.numeric import Constants, invert, require
from diffcli.diffusion.sde.base import SDE
from diffcli.diffusion.sde.expression import Expression

FINE = 2000  # points of the grid on which a path is checked


class Own(nn.Module):
    """One of the user's functions, t -> value, both float64 of one shape; raises ValueError where it returns anything else."""

    def __init__(self, name: str, function: nn.Module | str | float):
        super().__init__()
        self.name = name
        try:
            self.function = Expression(str(function)) if isinstance(function, (str, int, float)) else function
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        require(callable(self.function), f"{name} must be an expression or a module t -> value, got {function!r}")

    def forward(self, t: Tensor) -> Tensor:
        value = self.function(t)
        right = isinstance(value, Tensor) and value.shape == t.shape and value.dtype == t.dtype
        require(right, f"{self.name} must map a float64 tensor of times to one of its shape")
        return value


class Solved(SDE):
    """An SDE without a closed form of lam's inverse: a subclass writes `log_alpha`, `log_sigma` and calls `_check` last."""

    def _check(self, t_min: float, t_max: float) -> None:
        """Set the range, and refuse a path that is not one: alpha and sigma above 0, lam strictly falling."""
        self._check_range(t_min, t_max)
        u = torch.linspace(0, 1, FINE, dtype=torch.float64)
        near = torch.logspace(-9, 0, FINE // 4, dtype=torch.float64)  # both ends may be steep
        u = torch.cat([u, near, 1 - near]).unique()
        t = t_min + (t_max - t_min) * u
        t[0], t[-1] = t_min, t_max
        t = t.unique()
        lam = self.lam(t)
        self._refuse(t, ~torch.isfinite(lam), "lam = log(alpha/sigma) is not finite at t = {:.6g}")
        rising = torch.cat([lam.diff() >= 0, torch.zeros(1, dtype=torch.bool)])
        self._refuse(t, rising, "lam = log(alpha/sigma) must fall as t rises, and does not at t = {:.6g}")
        self.knots = Constants(t, lam)
        self._set_range(t_min, t_max)

    @staticmethod
    def _check_range(t_min: float, t_max: float) -> None:
        require(
            0 <= t_min < t_max <= 1, f"t_min and t_max must satisfy 0 <= t_min < t_max <= 1, got {t_min} and {t_max}"
        )

    @staticmethod
    def _refuse(t: Tensor, wrong: Tensor, sentence: str) -> None:
        require(not bool(wrong.any()), sentence.format(t[wrong.int().argmax()].item()))

    @abstractmethod
    def _lam_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """lam and dlam/dt."""

    @torch.no_grad()
    def time(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`, to round-off, by root finding; t_min or t_max for a level that lies outside."""
        t, known = self.knots.on(lam.device)
        i = (torch.searchsorted(-known, -lam.contiguous()) - 1).clamp(0, len(t) - 2)
        found = invert(self._lam_and_slope, lam, t[i], t[i + 1])
        return torch.where(lam >= known[0], t[0], torch.where(lam <= known[-1], t[-1], found))


def scalar(function, t: float) -> float:
    """The value of a function at one time."""
    return function(torch.tensor(t, dtype=torch.float64)).item()


def usable(lam: float) -> bool:
    """Whether an end of [0, 1] may be one of a path: signal and noise both above a millionth of each other."""
    return math.isfinite(lam) and abs(lam) < 6 * math.log(10)
