"""Resampling: the way down in stretches, each of them walked several times."""

from dataclasses import dataclass

from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan, Sampler


@dataclass(frozen=True)
class Stretches(Plan):
    """A plan with the predictor's own of each stretch, and ratio and std of the way back up it."""

    parts: list[Plan]
    up: list[tuple[float, float]]


class Keyed:
    """The noise of a caller under other counters, so that no two passes share one."""

    def __init__(self, noise, prefix: str):
        self.noise, self.prefix = noise, prefix

    def __call__(self, counter):
        return self.noise(f"{self.prefix}, {counter}")

    def uniform(self, counter):
        return self.noise.uniform(f"{self.prefix}, {counter}")


class Resample(FixedGrid):
    """RePaint's way down: `jump` steps of the predictor from t to s, back up by `x_t = (alpha_t/alpha_s) x_s + sigma_{t|s} z`,
    and down again, `resamples` times in all; then the next stretch.

    A constraint that is put on x_s step by step, as guidance.method=replacement does, is then harmonised with the rest at
    every level.  Without one it keeps the marginals.  Each pass starts with an empty history, so that a multistep predictor
    climbs to its order within `jump` steps, and is of order 1 at jump=1.  resamples=1 is the predictor itself.
    `sigma_{t|s}` as in `SDE.transition`.  The last stretch is repeated too: of the paper's, which ends in data without noise, it
    is the last but one, and last=denoise is its last.
    Raises ValueError for a predictor that does not walk the grid through the levels, and unless resamples, jump >= 1.
    Lugmayr et al. 2022, alg. 1 and app. B, arXiv:2201.09865.
    """

    def __init__(self, predictor: Sampler, resamples: int = 10, jump: int = 1):
        fixed, walks = predictor.evaluations is not None, predictor.kind in ("ode", "sde")
        require(fixed, "the predictor chooses its own steps, and resampling needs the grid's")
        require(walks, "the predictor asks the score alone: it does not go from level to level")
        require(resamples >= 1, f"resamples must be at least 1, got {resamples}")
        require(jump >= 1, f"jump must be at least 1, got {jump}")
        self.predictor, self.resamples, self.jump = predictor, resamples, jump
        self.kind, self.order = ("sde", None) if resamples > 1 else (predictor.kind, predictor.order)
        self.evaluations = predictor.evaluations * resamples
        self.clock, self.memory, self.declared_for = predictor.clock, predictor.memory, predictor.declared_for
        self.needs = predictor.needs

    def setup(self, denoiser):
        self.predictor.setup(denoiser)

    def warning(self, denoiser, times):
        return self.predictor.warning(denoiser, times)

    def last(self):
        return self.predictor.last() if self.resamples == 1 else super().last()

    def cost(self, steps):
        if self.resamples == 1:
            return self.predictor.cost(steps)
        whole, rest = divmod(steps, self.jump)
        one = whole * self.predictor.cost(self.jump) + (self.predictor.cost(rest) if rest else 0)
        return self.resamples * one

    def plan(self, sde, times):
        steps = len(times) - 1
        length = self.jump if self.resamples > 1 else steps
        parts = [times[i : i + length + 1] for i in range(0, steps, length)]
        up = [tuple(c.item() for c in sde.transition(part[-1], part[0])) for part in parts]
        return Stretches.at(sde, times, parts=[self.predictor.plan(sde, part) for part in parts], up=up)

    def step(self, denoiser, xt, i, plan, history, noise):
        if self.resamples == 1:
            return self.predictor.step(denoiser, xt, i, plan.parts[0], history, noise)
        k, j = divmod(i, self.jump)
        part = plan.parts[k]
        if j == 0:
            history.clear()
        x = self.predictor.step(denoiser, xt, j, part, history, Keyed(noise, f"stretch {k}, pass 0"))
        if j + 2 < len(part.t):
            return x
        ratio, std = plan.up[k]
        for r in range(1, self.resamples):
            x = combine((ratio, x), (std, noise(f"stretch {k}, up {r}")))
            history.clear()
            for j in range(len(part.t) - 1):
                x = self.predictor.step(denoiser, x, j, part, history, Keyed(noise, f"stretch {k}, pass {r}"))
        return x
