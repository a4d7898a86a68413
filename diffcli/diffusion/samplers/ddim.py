"""DDIM."""

import torch

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.one_reading import OneReading


class DDIM(OneReading):
    """`x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z`, `c = eta sigma_s sqrt(1 - e^{-2h})`, `h = lam_s - lam_t`.

    eta = 0 is the first-order exponential integrator of the PF-ODE (DPM-Solver-1), eta = 1 is ancestral sampling.
    Raises ValueError unless 0 <= eta <= 1.  Song et al. 2021, eq. 12, arXiv:2010.02502.
    """

    def __init__(self, eta: float = 0.0):
        require(0 <= eta <= 1, f"eta must lie in [0, 1], got {eta}")
        self.eta = float(eta)
        self.kind = "sde" if self.eta else "ode"

    def coefficients(self, sde, t, s):
        h = sde.lam(s) - sde.lam(t)
        share = self.eta**2 * -torch.expm1(-2 * h)  # of sigma_s^2 that is new noise
        along = sde.sigma(s) * torch.sqrt(1 - share) / sde.sigma(t)  # sigma_t eps = x - alpha x0_hat
        return along, sde.alpha(s) - along * sde.alpha(t), sde.sigma(s) * torch.sqrt(share)
