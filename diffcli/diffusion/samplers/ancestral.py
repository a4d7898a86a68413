"""Ancestral sampling."""

import math

from diffcli.diffusion.samplers.base import FixedGrid


class Ancestral(FixedGrid):
    """`x_s = (alpha_t/alpha_s)(sigma_s^2/sigma_t^2) x_t + alpha_s (1 - e^{-2h}) x0 + std z`, `h = lam_s - lam_t`.

    The posterior of x_s given x_t and x0 = x0_hat, with its own ("small") `std^2 = sigma_s^2 (1 - e^{-2h})`, no z in the last
    step; on any SDE.  Ho et al. 2020, eq. 6-7, arXiv:2006.11239; Kingma et al. 2021, eq. 25-28, arXiv:2107.00630.
    """

    kind = "sde"
    order = 1
    evaluations = 1

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, sigma_t = plan.alpha[i], plan.sigma[i]
        alpha_s, sigma_s = plan.alpha[i + 1], plan.sigma[i + 1]
        shrink = -math.expm1(-2 * (plan.lam[i + 1] - plan.lam[i]))
        mean = (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2 * xt + alpha_s * shrink * denoiser(xt, plan.t[i])
        if i + 2 == len(plan.t):
            return mean
        return mean + sigma_s * math.sqrt(shrink) * noise(i + 1)
