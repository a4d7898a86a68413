"""DDIM."""

import math

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import FixedGrid


class DDIM(FixedGrid):
    """`x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z`, `c = eta sigma_s sqrt(1 - e^{-2h})`, `h = lam_s - lam_t`.

    eta = 0 is the first-order exponential integrator of the PF-ODE (DPM-Solver-1), eta = 1 is ancestral sampling.
    Raises ValueError unless 0 <= eta <= 1.  Song et al. 2021, eq. 12, arXiv:2010.02502.
    """

    order = 1
    evaluations = 1

    def __init__(self, eta: float = 0.0):
        require(0 <= eta <= 1, f"eta must lie in [0, 1], got {eta}")
        self.eta = float(eta)
        self.kind = "ode" if eta == 0 else "sde"

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_s, sigma_s, h = plan.alpha[i + 1], plan.sigma[i + 1], plan.lam[i + 1] - plan.lam[i]
        c = self.eta * sigma_s * math.sqrt(-math.expm1(-2 * h))
        x0, eps = denoiser.x0_and_eps(xt, plan.t[i])
        xs = alpha_s * x0 + math.sqrt(sigma_s**2 - c**2) * eps
        return xs if self.eta == 0 else xs + c * noise(i + 1)
