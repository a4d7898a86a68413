"""Euler-Maruyama on the family of SDEs that share their marginals."""

import torch

from diffcli.diffusion.samplers.eta import check_eta
from diffcli.diffusion.samplers.one_reading import OneReading


class EulerMaruyama(OneReading):
    """`x_s = x_t + (f x_t - (1 + eta^2)/2 g^2 score)(s - t) + eta g sqrt(t - s) z`.

    eta = 1 is the reverse SDE, eta = 0 the PF-ODE (then this is `euler variable=t`).  With `g^2 = -2 sigma^2 dlam/dt` the
    drift is `(dlog(sigma)/dt - eta^2 dlam/dt) x_t + (1 + eta^2) alpha dlam/dt x0_hat`.
    Raises ValueError unless eta >= 0.  Song et al. 2021, eq. 6 and app. D, arXiv:2011.13456; Karras et al. 2022, eq. 6.
    """

    clock = "t"
    both_ways = False

    def __init__(self, eta: float = 1.0):
        self.eta = check_eta(eta)
        self.kind = "sde" if self.eta else "ode"

    def coefficients(self, sde, t, s):
        dt, dlam, k = s - t, sde.dlam(t), self.eta**2
        g = sde.sigma(t) * torch.sqrt(-2 * dlam)
        return (
            1 + dt * (sde.dlog_sigma(t) - k * dlam),
            dt * (1 + k) * sde.alpha(t) * dlam,
            self.eta * g * torch.sqrt(-dt),
        )
