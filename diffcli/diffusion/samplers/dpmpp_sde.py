"""DPM-Solver++ on the SDE, with a stage between."""

from dataclasses import dataclass

from diffcli.diffusion.numeric import combine
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.samplers.eta import check_eta, damping


@dataclass(frozen=True)
class HalfwayPlan(Plan):
    """A plan with the same coefficients at the midpoints in lam."""

    mid: Plan


class DPMppSDE(FixedGrid):
    """With m the midpoint in lam: `u = (sigma_m/sigma_t) e^{-k h/2} x_t + alpha_m (1 - e^{-(1+k) h/2}) x0(x_t, t) + n_m`,
    `x_s = (sigma_s/sigma_t) e^{-k h} x_t + alpha_s (1 - e^{-(1+k) h}) x0(u, m) + n_s`, `k = eta^2`,
    `n_m = sigma_m sqrt(1 - e^{-k h}) z_1`, `n_s = (sigma_s/sigma_m) e^{-k h/2} n_m + sigma_s sqrt(1 - e^{-k h}) z_2`.

    n_m and n_s come from one Brownian path, which makes it of weak order 2; with independent ones it has order 1, for x0(u, m)
    must know the half of n_s that has already happened (Kloeden & Platen 1992, sec. 15.1).
    eta = 0 is DPM-Solver++(2S), eta = 1 the reverse SDE.  Raises ValueError unless eta >= 0.
    Lu et al. 2022, alg. 1 and app. A, arXiv:2211.01095 (k-diffusion's `sample_dpmpp_sde` with r = 1/2 has the same coefficients
    at eta = 1, and n_m and n_s of a path in sigma, whose correlation is another).
    """

    order = 2
    evaluations = 2

    def __init__(self, eta: float = 1.0):
        self.eta = check_eta(eta)
        self.kind = "sde" if self.eta else "ode"

    def plan(self, sde, times):
        lam = sde.lam(times)
        return HalfwayPlan.at(sde, times, mid=Plan.at(sde, sde.time((lam[:-1] + lam[1:]) / 2)))

    def step(self, denoiser, xt, i, plan, history, noise):
        mid, sigma_t, sigma_m, sigma_s = plan.mid, plan.sigma[i], plan.mid.sigma[i], plan.sigma[i + 1]
        h = plan.lam[i + 1] - plan.lam[i]
        half, whole = damping(self.eta, h / 2), damping(self.eta, h)
        z1, z2 = (noise(i + 1), noise(f"{i + 1}b")) if self.eta else (None, None)

        u = [(sigma_m / sigma_t * half.keep, xt), (mid.alpha[i] * half.gain, denoiser(xt, plan.t[i]))]
        if self.eta:
            u.append((sigma_m * half.fresh, z1))
        x0 = denoiser(combine(*u), mid.t[i])
        xs = [(sigma_s / sigma_t * whole.keep, xt), (plan.alpha[i + 1] * whole.gain, x0)]
        if self.eta:
            xs += [(sigma_s * half.keep * half.fresh, z1), (sigma_s * half.fresh, z2)]
        return combine(*xs)
