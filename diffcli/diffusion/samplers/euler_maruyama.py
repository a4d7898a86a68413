"""Euler-Maruyama on the reverse SDE."""

import math
from dataclasses import dataclass

from diffcli.diffusion.samplers.base import FixedGrid, Plan


@dataclass(frozen=True)
class DriftPlan(Plan):
    """A plan with the SDE's own coefficients."""

    f: list[float]
    g2: list[float]


class EulerMaruyama(FixedGrid):
    """`x_s = x_t + (f x_t - g^2 score)(s - t) + g sqrt(t - s) z`.

    Song et al. 2021, eq. 6 and app. D, arXiv:2011.13456.
    """

    kind = "sde"
    order = 1
    evaluations = 1

    def plan(self, sde, times):
        return DriftPlan.at(sde, times, f=sde.f(times).tolist(), g2=sde.g2(times).tolist())

    def step(self, denoiser, xt, i, plan, history, noise):
        f, g2, dt = plan.f[i], plan.g2[i], float(plan.t[i + 1] - plan.t[i])
        return xt + (f * xt - g2 * denoiser.score(xt, plan.t[i])) * dt + math.sqrt(-g2 * dt) * noise(i + 1)
