"""Euler steps to a lower level than the next, and noise back up to it."""

import torch

from diffcli.diffusion.samplers.eta import check_eta
from diffcli.diffusion.samplers.one_reading import OneReading


class EulerAncestral(OneReading):
    """In `y = x/alpha` with levels `k = sigma/alpha`: `y_s = y_t + (k_down - k_t) eps + k_up z`,
    `k_up = min(k_s, eta k_s sqrt(1 - k_s^2/k_t^2))`, `k_down^2 = k_s^2 - k_up^2`.

    Up to eta = 1 it is DDIM with that eta; beyond it the noise may fill the whole level.
    Raises ValueError unless eta >= 0.  Song et al. 2021, eq. 12, arXiv:2010.02502, in the variables of Karras et al. 2022,
    arXiv:2206.00364 (k-diffusion's `sample_euler_ancestral`).
    """

    both_ways = False

    def __init__(self, eta: float = 1.0):
        self.eta = check_eta(eta)
        self.kind = "sde" if self.eta else "ode"

    def coefficients(self, sde, t, s):
        k_t, k_s = torch.exp(-sde.lam(t)), torch.exp(-sde.lam(s))
        h = sde.lam(s) - sde.lam(t)
        up = k_s * (self.eta * torch.sqrt(-torch.expm1(-2 * h))).clamp(max=1)
        down = torch.sqrt(k_s**2 - up**2)
        # y_t - k_t eps = x0_hat, so y_s = x0_hat + k_down eps + k_up z
        along = down / k_t
        alpha = sde.alpha(s)
        return alpha / sde.alpha(t) * along, alpha * (1 - along), alpha * up
