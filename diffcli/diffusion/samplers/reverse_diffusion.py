"""Reverse diffusion: the forward chain's own discretisation, turned around."""

from diffcli.diffusion.samplers.eta import check_eta
from diffcli.diffusion.samplers.one_reading import OneReading


class ReverseDiffusion(OneReading):
    """`x_s = (2 - alpha_t/alpha_s) x_t + (1 + eta^2)/2 sigma_{t|s}^2 score + eta sigma_{t|s} z`.

    The forward step's increment and variance, on any path: `2 - sqrt(1 - beta)` and beta for DDPM's chain, 1 and
    `sigma_t^2 - sigma_s^2` for NCSN's.  eta = 1 is the paper's sampler, eta = 0 its discretised probability flow.
    Raises ValueError unless eta >= 0.  Song et al. 2021, app. E and eq. 43-47, arXiv:2011.13456.
    """

    both_ways = False

    def __init__(self, eta: float = 1.0):
        self.eta = check_eta(eta)
        self.kind = "sde" if self.eta else "ode"

    def coefficients(self, sde, t, s):
        ratio, std = sde.transition(s, t)
        pull = 0.5 * (1 + self.eta**2) * (std / sde.sigma(t)) ** 2  # sigma_t^2 score = alpha x0_hat - x
        return 2 - ratio - pull, pull * sde.alpha(t), self.eta * std
