"""Samplers whose step is one reading of the model, `x_s = p x_t + q x0_hat + c z`; they write its coefficients."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.sde import SDE


@dataclass(frozen=True)
class Steps(Plan):
    """A plan with the coefficients of each step: of x_t, of x0_hat, and of the noise."""

    p: list[float]
    q: list[float]
    c: list[float]


class OneReading(FixedGrid):
    """`x_s = p x_t + q x0_hat + c z`, where p, q and c depend on the two times alone."""

    order = 1
    evaluations = 1

    @abstractmethod
    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, q and c of the steps from t to s < t, in their shape."""

    def plan(self, sde, times):
        p, q, c = (a.tolist() for a in self.coefficients(sde, times[:-1], times[1:]))
        return Steps.at(sde, times, p=p, q=q, c=c)

    def step(self, denoiser, xt, i, plan, history, noise):
        mean, c = denoiser.reading(xt, plan.t[i], plan.p[i], plan.q[i]), plan.c[i]
        return torch.add(mean, noise(i + 1), alpha=c) if c else mean
