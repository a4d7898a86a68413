"""Ancestral sampling."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.variance import VARIANCES, check_variance, log_variances


@dataclass(frozen=True)
class Variances(Plan):
    """A plan with the log-variances of each step."""

    log_small: list[float]
    log_large: list[float]


class Ancestral(FixedGrid):
    """`x_s = (alpha_t/alpha_s)(sigma_s^2/sigma_t^2) x_t + alpha_s (1 - e^{-2h}) x0 + std z`, `h = lam_s - lam_t`.

    The posterior of x_s given x_t and x0 = x0_hat, with its own ("small") `std^2 = sigma_s^2 (1 - e^{-2h})`, the forward
    step's ("large") `std^2 = sigma_{t|s}^2`, or the one between the two that the model has learned; on any SDE.  The step to x_0
    itself, which has no z, is last=denoise.
    Raises ValueError for another variance, and in setup for a learned one that the model lacks.
    Ho et al. 2020, eq. 6-7, arXiv:2006.11239; Nichol & Dhariwal 2021, eq. 15, arXiv:2102.09672;
    Kingma et al. 2021, eq. 25-28, arXiv:2107.00630.
    """

    kind = "sde"
    order = 1
    evaluations = 1

    def __init__(self, variance: Literal["small", "large", "learned"] = "small"):
        require(variance in VARIANCES, f"variance must be one of {', '.join(VARIANCES)}, got {variance}")
        self.variance = variance

    def setup(self, denoiser):
        check_variance(self.variance, denoiser)

    def plan(self, sde, times):
        t, s = times[:-1], times[1:]
        small, large = log_variances(sde.log_sigma(s), sde.log_sigma(t), sde.lam(s) - sde.lam(t))
        return Variances.at(sde, times, log_small=small.tolist(), log_large=large.tolist())

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, sigma_t = plan.alpha[i], plan.sigma[i]
        alpha_s, sigma_s = plan.alpha[i + 1], plan.sigma[i + 1]
        shrink = -math.expm1(-2 * (plan.lam[i + 1] - plan.lam[i]))
        small, large = plan.log_small[i], plan.log_large[i]
        if self.variance == "learned":
            x0, _, v = denoiser.moments(xt, plan.t[i])
            std = torch.exp(0.5 * (small + (large - small) * v))
        else:
            x0 = denoiser(xt, plan.t[i])
            std = math.exp(0.5 * (small if self.variance == "small" else large))
        return (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2 * xt + alpha_s * shrink * x0 + std * noise(i + 1)
