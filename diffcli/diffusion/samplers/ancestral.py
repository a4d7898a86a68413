"""Ancestral sampling."""

from typing import Literal

import torch

from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.one_reading import OneReading
from diffcli.diffusion.variance import VARIANCES, check_variance, log_variances


class Ancestral(OneReading):
    """`x_s = (alpha_t/alpha_s)(sigma_s^2/sigma_t^2) x_t + alpha_s (1 - e^{-2h}) x0 + std z`, `h = lam_s - lam_t`.

    The posterior of x_s given x_t and x0 = x0_hat, with its own ("small") `std^2 = sigma_s^2 (1 - e^{-2h})`, the forward
    step's ("large") `std^2 = sigma_{t|s}^2`, or the one between the two that the model has learned; on any SDE.  The step to x_0
    itself, which has no z, is last=denoise.
    Raises ValueError for another variance, and in setup for a learned one that the model lacks.
    Ho et al. 2020, eq. 6-7, arXiv:2006.11239; Nichol & Dhariwal 2021, eq. 15, arXiv:2102.09672;
    Kingma et al. 2021, eq. 25-28, arXiv:2107.00630.
    """

    kind = "sde"

    def __init__(self, variance: Literal["small", "large", "learned"] = "small"):
        require(variance in VARIANCES, f"variance must be one of {', '.join(VARIANCES)}, got {variance}")
        self.variance = variance

    def setup(self, denoiser):
        check_variance(self.variance, denoiser)

    def coefficients(self, sde, t, s):
        h = sde.lam(s) - sde.lam(t)
        small, large = log_variances(sde.log_sigma(s), sde.log_sigma(t), h)
        ratio, spread = sde.alpha(t) / sde.alpha(s), sde.sigma(s) / sde.sigma(t)
        std = torch.exp(0.5 * (large if self.variance == "large" else small))
        return ratio * spread**2, sde.alpha(s) * -torch.expm1(-2 * h), std

    def step(self, denoiser, xt, i, plan, history, noise):
        if self.variance != "learned":
            return super().step(denoiser, xt, i, plan, history, noise)
        x0, _, v = denoiser.moments(xt, plan.t[i])
        # between the small one, plan.c, and the large one, (sigma_t/sigma_s) plan.c
        std = plan.c[i] * (plan.sigma[i] / plan.sigma[i + 1]) ** v
        return combine((plan.p[i], xt), (plan.q[i], x0)).addcmul_(std, noise(i + 1))
