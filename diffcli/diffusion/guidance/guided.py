"""What every guidance has in common: how strong it is, and at which times."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.base import Wrapper
from diffcli.diffusion.numeric import require, transformed


class Guided(Wrapper):
    """A denoiser with guidance of strength `scale` (gamma; 0 is none, below 0 away) at the times of `interval`, none outside.

    Raises ValueError unless scale is finite and interval is [low, high] with 0 <= low < high <= 1.
    Kynkäänniemi et al. 2024, arXiv:2404.07724 (intervals).
    """

    def __init__(self, inner: Denoiser, scale: float, interval: list[float] | tuple[float, ...]):
        super().__init__(inner)
        require(math.isfinite(scale), f"scale must be finite, got {scale}")
        require(
            len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1,
            f"interval must be [low, high] in t with 0 <= low < high <= 1, got {list(interval)}",
        )
        self.outputs = inner.outputs
        self.scale, self.interval = float(scale), (float(interval[0]), float(interval[1]))

    def only_until(self, t: float) -> None:
        """Guide at no noisier level than that of t: what guides has none.  Raises ValueError where that is nowhere."""
        low, high = self.interval
        require(low < t, "what guides was made for less noise than there is at the times of guidance")
        self.interval = low, min(high, t)

    def strength(self, t: Tensor) -> Tensor | float:
        """gamma at t: a number for t (), where 0.0 saves what guidance costs; for t (B,), of which some are outside, (B,)."""
        low, high = self.interval
        if self.scale == 0 or (low <= self.sde.t_min and self.sde.t_max <= high):
            return self.scale
        inside = (t >= low) & (t <= high)
        if t.ndim or transformed(t):
            return torch.where(inside, self.scale, 0.0).to(t.dtype)
        return self.scale if bool(inside) else 0.0


def is_none(gamma: Tensor | float) -> bool:
    """Whether there is no guidance at all; strengths (B,) are not looked at, so that each item costs the same."""
    return isinstance(gamma, float) and gamma == 0
