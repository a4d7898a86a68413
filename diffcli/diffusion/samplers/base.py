"""What every sampler is, and the one loop over a fixed grid."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.sde import SDE


@dataclass(frozen=True)
class Plan:
    """The coefficients at the times of a grid, computed once in float64: Python floats, so that a step never waits for a device."""

    t: list[Tensor]  # 0-dimensional, what the denoiser is called with
    alpha: list[float]
    sigma: list[float]
    lam: list[float]

    @classmethod
    def at(cls, sde: SDE, times: Tensor, **more):
        """The plan at these times; a subclass takes its own columns by name."""
        return cls(list(times), sde.alpha(times).tolist(), sde.sigma(times).tolist(), sde.lam(times).tolist(), **more)


class Samples(NamedTuple):
    """x (B, *S) in model space, and network evaluations of each item (B,)."""

    x: Tensor
    nfe: Tensor


class Sampler(ABC):
    """Takes a denoiser with its conditions bound, x at times[0], decreasing times and noise, to x at times[-1].

    kind: ode or sde (does it draw noise?).  order: of its global error on `grid=uniform_lam` (ode: strong, sde: weak).
    evaluations: of the denoiser a step; None if it chooses its steps itself.
    """

    kind: ClassVar[Literal["ode", "sde"]]
    order: ClassVar[int]
    evaluations: ClassVar[int | None]

    def setup(self, denoiser: Denoiser) -> None:  # noqa: B027 - most have nothing to check
        """Called once, before any work.  Raises ValueError where the sampler does not go with the model."""

    @abstractmethod
    def walk(self, denoiser: Denoiser, x: Tensor, times: Tensor, noise, callback) -> Samples:
        """The whole walk; callback(i, x) is called with x at times[i] for i = 1 ... steps."""

    def last(self) -> str:
        """What its last step does unless it is told: stop at times[-1] (ode), or return x0_hat (sde)."""
        return "stop" if self.kind == "ode" else "denoise"


class FixedGrid(Sampler):
    """A sampler whose steps are those of the grid; it writes `step`."""

    def plan(self, sde: SDE, times: Tensor) -> Plan:
        return Plan.at(sde, times)

    @abstractmethod
    def step(self, denoiser: Denoiser, xt: Tensor, i: int, plan: Plan, history: list, noise) -> Tensor:
        """From x at t = times[i] to x at s = times[i + 1]; `noise(i + 1)` is its standard normal noise."""

    def walk(self, denoiser, x, times, noise, callback=None):
        plan, history, before = self.plan(denoiser.sde, times), [], evaluations(denoiser)
        for i in range(len(times) - 1):
            x = self.step(denoiser, x, i, plan, history, noise)
            if callback is not None:
                callback(i + 1, x)
        nfe = (evaluations(denoiser) - before) // x.shape[0]
        return Samples(x, torch.full((x.shape[0],), nfe))


def sample(
    denoiser: Denoiser, sampler: Sampler, start: Tensor, times: Tensor, noise, last=None, callback=None
) -> Samples:
    """Draw one sample from each row of `start`, which is x at times[0].

    last: "stop" returns x at times[-1], "denoise" adds one evaluation and returns x0_hat there.
    """
    x, nfe = sampler.walk(denoiser, start, times, noise, callback)
    if (last or sampler.last()) == "denoise":
        before = evaluations(denoiser)
        x = denoiser(x, times[-1])
        nfe = nfe + (evaluations(denoiser) - before) // x.shape[0]
    return Samples(x, nfe)
