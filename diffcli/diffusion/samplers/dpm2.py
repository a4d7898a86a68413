"""DPM-Solver-2."""

import math
from dataclasses import dataclass

from diffcli.diffusion.samplers.base import FixedGrid, Plan


@dataclass(frozen=True)
class MidpointPlan(Plan):
    """A plan with the same coefficients at the midpoints in lam."""

    mid: Plan


class DPM2(FixedGrid):
    """With m the midpoint in lam: `u = (alpha_m/alpha_t) xt - sigma_m (e^{h/2} - 1) eps(xt, t)`,
    `x_s = (alpha_s/alpha_t) xt - sigma_s (e^h - 1) eps(u, m)`.

    Lu et al. 2022, alg. 1, arXiv:2206.00927.
    """

    kind = "ode"
    order = 2
    evaluations = 2

    def plan(self, sde, times):
        lam = sde.lam(times)
        return MidpointPlan.at(sde, times, mid=Plan.at(sde, sde.time((lam[:-1] + lam[1:]) / 2)))

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, alpha_m, alpha_s = plan.alpha[i], plan.mid.alpha[i], plan.alpha[i + 1]
        sigma_m, sigma_s, h = plan.mid.sigma[i], plan.sigma[i + 1], plan.lam[i + 1] - plan.lam[i]
        u = (alpha_m / alpha_t) * xt - sigma_m * math.expm1(h / 2) * denoiser.eps(xt, plan.t[i])
        return (alpha_s / alpha_t) * xt - sigma_s * math.expm1(h) * denoiser.eps(u, plan.mid.t[i])
