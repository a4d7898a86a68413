"""Annealed Langevin dynamics, NCSN's."""

import math
from typing import Literal

from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.langevin import ScoreOnly


class AnnealedLangevin(ScoreOnly):
    """From the largest level to the smallest, `level_steps` steps `x + gamma score + sqrt(2 gamma) z` each, `gamma = r sigma^2`.

    r is scale-free: Song & Ermon's epsilon is `2 r sigma_min^2`.  first: whether the first level is walked too, or only
    started from.  Their final denoising `x + sigma_min^2 score` is last=denoise.  On paths whose alpha changes x goes from
    level to level as it is: times alpha_s/alpha_t, which is the same walk in x/alpha, the noise of the first levels would grow
    with every step down, and only many more levels calm it.
    Raises ValueError as `ScoreOnly`, and unless level_steps >= 1.
    Song & Ermon 2019, alg. 1, arXiv:1907.05600; 2020, sec. 3 and app., arXiv:2006.09011.
    """

    def __init__(
        self,
        r: float = 0.1,
        level_steps: int = 10,
        first: bool = True,
        start: Literal["prior", "uniform"] = "prior",
        low: float = -1.0,
        high: float = 1.0,
    ):
        super().__init__(r, start, low, high)
        require(level_steps >= 1, f"level_steps must be at least 1, got {level_steps}")
        self.level_steps, self.first, self.evaluations = level_steps, first, level_steps

    def cost(self, steps):
        return self.level_steps * (steps + self.first)

    def step(self, denoiser, xt, i, plan, history, noise):
        if self.first and i == 0:
            xt = self.at_level(denoiser, xt, 0, plan, noise)
        return self.at_level(denoiser, xt, i + 1, plan, noise)

    def at_level(self, denoiser, x, i, plan, noise):
        """The steps at times[i]."""
        gamma = self.r * plan.sigma[i] ** 2
        for j in range(self.level_steps):
            x = combine(
                (1.0, x), (gamma, plan.score(denoiser, x, i)), (math.sqrt(2 * gamma), noise(f"level {i}, step {j}"))
            )
        return x
