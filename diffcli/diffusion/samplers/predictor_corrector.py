"""Predictor-corrector sampling."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan, Sampler
from diffcli.diffusion.samplers.langevin import ScorePlan


@dataclass(frozen=True)
class CorrectedPlan(ScorePlan):
    """A plan with the predictor's own."""

    predictor: Plan


class PredictorCorrector(FixedGrid):
    """One step of the predictor to s, then `corrector_steps` steps `x + gamma score + sqrt(2 gamma) z` of Langevin there,
    `gamma = 2 a (snr |z| / |score|)^2`, `a = (alpha_t/alpha_s)^2`, which is 1 where alpha stays; never above sigma_s^2.

    norms: "expected", `|z|^2 = d` and the noise's own `|score|^2 = d / sigma_s^2`, so that `gamma = 2 a (snr sigma_s)^2`; or
    "sample", of each item's z and score, as published for many dimensions.  The first keeps p_s to first order in gamma.
    The second keeps p_s |score|^2 instead, and is as much too wide again by z: on N(0, I) its variance is `(1 + 2/d)^2`.
    It has an order with corrector_steps=0 alone, where it is its predictor.  A predictor with a history in x0 reads the
    corrector's noise as a slope; one in eps, or without a history, suits it better.
    Raises ValueError for a predictor that does not walk the grid through the levels, and unless corrector_steps >= 0, snr > 0.
    Song et al. 2021, alg. 4-5, arXiv:2011.13456.
    """

    def __init__(
        self,
        predictor: Sampler,
        corrector_steps: int = 1,
        snr: float = 0.16,
        norms: Literal["expected", "sample"] = "expected",
    ):
        fixed, walks = predictor.evaluations is not None, predictor.kind in ("ode", "sde")
        require(fixed, "the predictor chooses its own steps, and the corrector needs the grid's")
        require(walks, "the predictor asks the score alone: it does not go from level to level")
        require(corrector_steps >= 0, f"corrector_steps must be at least 0, got {corrector_steps}")
        require(snr > 0, f"snr must be above 0, got {snr}")
        require(norms in ("expected", "sample"), f"norms must be expected or sample, got {norms}")
        self.predictor, self.corrector_steps, self.snr, self.norms = predictor, corrector_steps, float(snr), norms
        self.kind, self.order = ("sde", None) if corrector_steps else (predictor.kind, predictor.order)
        self.evaluations = predictor.evaluations + corrector_steps
        self.clock, self.memory, self.declared_for = predictor.clock, predictor.memory, predictor.declared_for
        self.needs = predictor.needs

    def setup(self, denoiser):
        self.predictor.setup(denoiser)

    def cost(self, steps):
        return self.predictor.cost(steps) + self.corrector_steps * steps

    def last(self):
        return self.predictor.last() if self.corrector_steps == 0 else super().last()

    def plan(self, sde, times):
        return CorrectedPlan.at(sde, times, predictor=self.predictor.plan(sde, times))

    def step(self, denoiser, xt, i, plan, history, noise):
        x = self.predictor.step(denoiser, xt, i, plan.predictor, history, noise)
        for j in range(self.corrector_steps):
            score, z = plan.score(denoiser, x, i + 1), noise(f"corrector {i + 1}, step {j}")
            gamma = self.gamma(z, score, i, plan)
            x = x + gamma * score + (2 * gamma) ** 0.5 * z
        return x

    def gamma(self, z: Tensor, score: Tensor, i: int, plan: CorrectedPlan) -> float | Tensor:
        """The corrector's step; of each item where its norms count."""
        most, scale = plan.sigma[i + 1] ** 2, 2 * (self.snr * plan.alpha[i] / plan.alpha[i + 1]) ** 2
        if self.norms == "expected":
            return min(scale, 1.0) * most
        return match((scale * (_norm(z) / _norm(score)) ** 2).clamp(max=most), z)


def _norm(x: Tensor) -> Tensor:
    """Of each item, (B,)."""
    return x.flatten(1).norm(dim=1)
