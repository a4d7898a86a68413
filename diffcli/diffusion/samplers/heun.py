"""Heun's method on the probability-flow ODE."""

from dataclasses import dataclass
from typing import Literal

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import FixedGrid, Plan


@dataclass(frozen=True)
class SlopePlan(Plan):
    """A plan with the variable of integration and the factor on eps in dy/dtau."""

    tau: list[float]
    w: list[float]


class Heun(FixedGrid):
    """Heun on `dy/dtau = w(tau) eps`, `y = x / alpha`, where tau is sigma/alpha (w = 1, EDM's), lam or t.

    The PF-ODE in y is `dy = eps d(sigma/alpha)`, so `w = -sigma/alpha` for tau = lam and `w = -(sigma/alpha) dlam/dt` for t.
    Raises ValueError for another variable.  Karras et al. 2022, alg. 1, arXiv:2206.00364 (without its final level sigma = 0).
    """

    kind = "ode"
    order = 2
    evaluations = 2

    def __init__(self, variable: Literal["t", "lam", "sigma"] = "sigma"):
        require(variable in ("t", "lam", "sigma"), f"variable must be one of t, lam, sigma, got {variable}")
        self.variable = variable

    def plan(self, sde, times):
        ratio = sde.sigma(times) / sde.alpha(times)
        tau, w = {
            "sigma": (ratio, ratio.new_ones(ratio.shape)),
            "lam": (sde.lam(times), -ratio),
            "t": (times, -ratio * sde.dlam(times)),
        }[self.variable]
        return SlopePlan.at(sde, times, tau=tau.tolist(), w=w.tolist())

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, alpha_s, h = plan.alpha[i], plan.alpha[i + 1], plan.tau[i + 1] - plan.tau[i]
        y = xt / alpha_t
        slope_t = plan.w[i] * denoiser.eps(xt, plan.t[i])
        slope_s = plan.w[i + 1] * denoiser.eps(alpha_s * (y + h * slope_t), plan.t[i + 1])
        return alpha_s * (y + h * (slope_t + slope_s) / 2)
