"""DPM-Solver of one step, in eps: the linear part of the ODE exactly, eps by a few readings between the times."""

import math
from dataclasses import dataclass
from typing import ClassVar

from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.samplers.phi import phi


@dataclass(frozen=True)
class StepPlan(Plan):
    """A plan with the same coefficients at the times within each step."""

    within: list[Plan]


class Singlestep(FixedGrid):
    """A sampler that reads the model at the fractions r of each step in lam, and remembers nothing."""

    kind = "ode"
    r: ClassVar[tuple[float, ...]] = ()

    def plan(self, sde, times):
        lam = sde.lam(times)
        within = [Plan.at(sde, sde.time(lam[:-1] + r * lam.diff())) for r in self.r]
        return StepPlan.at(sde, times, within=within)


def check_r(**r: float) -> None:
    """Raises ValueError unless every fraction lies in (0, 1]."""
    for name, value in r.items():
        require(0 < value <= 1, f"{name} must lie in (0, 1], got {value}")


class DPM1(Singlestep):
    """`x_s = (alpha_s/alpha_t) xt - sigma_s (e^h - 1) eps(xt, t)`, `h = lam_s - lam_t`; the same as DDIM with eta = 0.

    Lu et al. 2022, eq. 3.7, arXiv:2206.00927.
    """

    order = 1
    evaluations = 1

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, alpha_s, sigma_s = plan.alpha[i], plan.alpha[i + 1], plan.sigma[i + 1]
        h = plan.lam[i + 1] - plan.lam[i]
        return combine((alpha_s / alpha_t, xt), (-sigma_s * math.expm1(h), denoiser.eps(xt, plan.t[i])))


class DPM2(Singlestep):
    """With m at `lam_t + r1 h`: `u = (alpha_m/alpha_t) xt - sigma_m (e^{r1 h} - 1) eps(xt, t)`,
    `x_s = (alpha_s/alpha_t) xt - sigma_s (e^h - 1) (eps(xt, t) + (eps(u, m) - eps(xt, t))/(2 r1))`.

    Raises ValueError unless 0 < r1 <= 1.  Lu et al. 2022, alg. 1 (r1 = 1/2) and 4, arXiv:2206.00927.
    """

    order = 2
    evaluations = 2

    def __init__(self, r1: float = 1 / 2):
        check_r(r1=r1)
        self.r = (float(r1),)

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, alpha_s, sigma_s = plan.alpha[i], plan.alpha[i + 1], plan.sigma[i + 1]
        h = plan.lam[i + 1] - plan.lam[i]
        (r1,), (m,) = self.r, plan.within
        e = denoiser.eps(xt, plan.t[i])
        u = combine((m.alpha[i] / alpha_t, xt), (-m.sigma[i] * math.expm1(r1 * h), e))
        em, w, c = denoiser.eps(u, m.t[i]), 0.5 / r1, -sigma_s * math.expm1(h)
        return combine((alpha_s / alpha_t, xt), (c * (1 - w), e), (c * w, em))


class DPM3(Singlestep):
    """With m, n at `lam_t + r1 h, lam_t + r2 h`, `D1 = eps(u, m) - eps(xt, t)`, `D2 = eps(v, n) - eps(xt, t)`:

    `u = (alpha_m/alpha_t) xt - sigma_m (e^{r1 h} - 1) eps(xt, t)`,
    `v = (alpha_n/alpha_t) xt - sigma_n (e^{r2 h} - 1) eps(xt, t) - sigma_n (r2/r1) r2 h phi_2(r2 h) D1`,
    `x_s = (alpha_s/alpha_t) xt - sigma_s (e^h - 1) eps(xt, t) - (sigma_s/r2) h phi_2(h) D2`, `h phi_2(h) = (e^h - 1)/h - 1`.

    Of order 3 for r2 = 2/3 alone, whatever r1, else 2.  Raises ValueError unless r1 and r2 lie in (0, 1].
    Lu et al. 2022, alg. 2 (r1 = 1/3, r2 = 2/3) and 5, arXiv:2206.00927.
    """

    evaluations = 3

    def __init__(self, r1: float = 1 / 3, r2: float = 2 / 3):
        check_r(r1=r1, r2=r2)
        self.r = (float(r1), float(r2))
        self.order = 3 if math.isclose(r2, 2 / 3, rel_tol=1e-6) else 2

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, alpha_s, sigma_s = plan.alpha[i], plan.alpha[i + 1], plan.sigma[i + 1]
        h = plan.lam[i + 1] - plan.lam[i]
        (r1, r2), (m, n) = self.r, plan.within
        e = denoiser.eps(xt, plan.t[i])
        u = combine((m.alpha[i] / alpha_t, xt), (-m.sigma[i] * math.expm1(r1 * h), e))
        d1 = denoiser.eps(u, m.t[i]) - e
        slope = -n.sigma[i] * (r2 / r1) * r2 * h * phi(2, r2 * h)
        v = combine((n.alpha[i] / alpha_t, xt), (-n.sigma[i] * math.expm1(r2 * h), e), (slope, d1))
        d2 = denoiser.eps(v, n.t[i]) - e
        slope = -(sigma_s / r2) * h * phi(2, h)
        return combine((alpha_s / alpha_t, xt), (-sigma_s * math.expm1(h), e), (slope, d2))
