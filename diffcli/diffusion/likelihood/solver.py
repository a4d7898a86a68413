"""Integrators of state and log-density together, from data to noise."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.likelihood.field import Field


class Walk(NamedTuple):
    """x1 (B, *S) at t_max; `∫ div v dt` (B, columns) in float64; calls of the field (B,); estimated error in nats (B,), or nan."""

    x1: Tensor
    integral: Tensor
    calls: Tensor
    error: Tensor


class Solver(ABC):
    """A way along the probability-flow ODE."""

    def setup(self, finest: float) -> None:  # noqa: B027 - most need nothing
        """Told the standard deviation of the data's finest structure, before any work."""

    @abstractmethod
    def __call__(self, field: Field, x0: Tensor) -> Walk:
        """From x0 (B, *S) at t_min to t_max."""


class InLam(Solver):
    """`dx/dlam` and its divergence, by an ODE solver of `diffusion.ode` that knows nothing of either."""

    def __init__(self, ode):
        self.ode = ode

    def __call__(self, field, x0):
        sde, d = field.sde, x0[0].numel()

        def fn(y, lam):
            t = sde.time(lam)
            reading = field(y[0], t, sde.dlog_sigma(t) / sde.dlam(t), sde.alpha(t))
            return reading.g, reading.div

        ends = sde.lam(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
        integral = torch.zeros(len(x0), field.columns, dtype=torch.float64, device=x0.device)
        (x1, integral), calls = self.ode.solve(fn, (x0, integral), *ends, scales=[(1.0, 1.0), (float(d), 0.0)])
        return Walk(x1, integral, calls, torch.full_like(integral[:, 0], float("nan")))
