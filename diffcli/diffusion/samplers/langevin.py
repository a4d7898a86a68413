"""Langevin dynamics at one noise level, and the step that all score-only samplers share."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.sde import SDE


@dataclass(frozen=True)
class ScorePlan(Plan):
    """A plan with the score at each time as the reading `p x + q x0_hat`."""

    p: list[float]
    q: list[float]

    @classmethod
    def at(cls, sde: SDE, times: Tensor, **more):
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        return super().at(sde, times, p=(-1 / sigma**2).tolist(), q=(alpha / sigma**2).tolist(), **more)

    def score(self, denoiser: Denoiser, x: Tensor, i: int) -> Tensor:
        """grad log p_t(x) at times[i]."""
        if self.sigma[i] == 0:  # the data themselves, of which the score is the only reading
            return denoiser.score(x, self.t[i])
        return denoiser.reading(x, self.t[i], self.p[i], self.q[i])


class ScoreOnly(FixedGrid):
    """A sampler that asks the score alone, at levels where it may stay: `x + gamma score`, with noise or without.

    r: gamma over sigma^2 of the level, which makes it free of scale: `log p_t + |x|^2 / (2 sigma^2)` is convex on every path, so
    no step with r < 2 overshoots the noise.
    start: where x begins, the prior or uniform on [low, high) in model space; x given by the caller goes before both.
    Raises ValueError unless 0 < r < 2 and low < high, and for another start.
    """

    kind = "score"
    order = None
    evaluations = 1

    def __init__(self, r: float, start: str, low: float, high: float):
        require(0 < r < 2, f"r must lie between 0 and 2 (beyond that a step overshoots), got {r}")
        require(start in ("prior", "uniform"), f"start must be prior or uniform, got {start}")
        require(low < high, f"low must be below high, got low={low:g} and high={high:g}")
        self.r, self.start, self.low, self.high = float(r), start, float(low), float(high)

    def plan(self, sde, times):
        return ScorePlan.at(sde, times)

    def begin(self, sde, noise):
        if self.start == "prior":
            return super().begin(sde, noise)
        return self.low + (self.high - self.low) * noise.uniform("start")


class AtOneLevel(ScoreOnly):
    """A sampler of many steps at the level t, by default the last time of the grid.

    r: of the step `gamma = r sigma^2`, usual_r unless given.  gamma: the step itself, in place of r.
    Raises ValueError as above, unless gamma is above 0, and in setup for t outside the SDE's range and for an r without noise.
    """

    one_level = True
    usual_steps = 1000
    usual_r: ClassVar[float]

    def __init__(
        self,
        r: float | None = None,
        gamma: float | None = None,
        t: float | None = None,
        start: Literal["prior", "uniform"] = "prior",
        low: float = -1.0,
        high: float = 1.0,
    ):
        super().__init__(self.usual_r if r is None else r, start, low, high)
        require(gamma is None or gamma > 0, f"gamma must be above 0, got {gamma}")
        self.gamma, self.t = gamma, t

    def setup(self, denoiser):
        sde = denoiser.sde
        if self.t is not None:
            require(sde.t_min <= self.t <= sde.t_max, f"t must lie in [{sde.t_min:g}, {sde.t_max:g}], got {self.t:g}")
        sigma = sde.sigma(torch.tensor(sde.t_min, dtype=torch.float64)).item()
        require(sigma > 0 or self.gamma is not None, "the level has no noise to scale r with: give gamma=0.01 or so")

    def end(self, times):
        return times[-1] if self.t is None else torch.tensor(self.t, dtype=torch.float64)

    def plan(self, sde, times):
        return super().plan(sde, self.end(times)[None])

    def warning(self, denoiser, times):
        sde, steps = denoiser.sde, len(times) - 1
        t = self.end(times)
        sigma = sde.sigma(t).item()
        reach = math.sqrt(2 * steps * (self.gamma or self.r * sigma**2))  # of a random walk
        begin = self.high - self.low if self.start == "uniform" else sde.prior_std
        if not sde.is_process or reach > 0.3 * begin:
            return ""
        return (
            f"at t = {t.item():.3g} the noise is {sigma:.2g}, and {steps} steps move x by no more than about {reach:.2g},"
            f" where it begins {begin:.3g} wide: give sampler.t=0.5 or so, sampler.gamma=, or start=FILE"
        )

    def ascent(self, denoiser: Denoiser, x: Tensor, plan: ScorePlan) -> tuple[float, Tensor]:
        """gamma and the score at the level."""
        return self.gamma or self.r * plan.sigma[0] ** 2, plan.score(denoiser, x, 0)

    def last(self):
        return "stop"


class Langevin(AtOneLevel):
    """`x + gamma score + sqrt(2 gamma) z`, `gamma = r sigma^2`, again and again at one noise level, whose p_t it samples.

    The unadjusted Langevin algorithm: exact as gamma goes to 0 and the steps to infinity, on N(0, 1) of variance `1/(1 - gamma/2)`.
    The "eps/2, sqrt(eps)" of others is gamma = eps/2.  Where modes lie apart it finds them in the proportion of where it
    starts.  Raises ValueError as `AtOneLevel`.
    Roberts & Tweedie 1996, Bernoulli 2(4); Song & Ermon 2019, eq. 4, arXiv:1907.05600.
    """

    usual_r = 0.1

    def step(self, denoiser, xt, i, plan, history, noise):
        gamma, score = self.ascent(denoiser, xt, plan)
        return combine((1.0, xt), (gamma, score), (math.sqrt(2 * gamma), noise(i + 1)))
