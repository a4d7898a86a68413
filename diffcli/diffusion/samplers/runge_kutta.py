"""Runge-Kutta methods on the probability-flow ODE."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcli.diffusion import ode
from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.samplers.form import EpsForm, Form, LForm, TForm
from diffcli.diffusion.sde import SDE

FORMS = {"t": TForm, "lam": LForm, "sigma": EpsForm}


@dataclass(frozen=True)
class StagePlan(Plan):
    """A plan with each stage's time, rho, scale and reading, step by step; the last is the step's end."""

    stage_t: list[list[Tensor]]
    rho: list[list[float]]
    scale: list[list[float]]
    p: list[list[float]]
    q: list[list[float]]


def stage_plan(form: Form, nodes, sde: SDE, times: Tensor) -> StagePlan:
    """The plan of a Runge-Kutta method with these nodes in the form's rho."""
    rho = form.rho(sde, times)
    known = {0: times[:-1], 1: times[1:]}  # free of the round-off of time(rho(t))
    return stage_plan_at(
        form,
        sde,
        times,
        [known[c] if c in known else form.time(sde, rho[:-1] + c * rho.diff()) for c in [*nodes, 1]],
    )


def stage_plan_at(form: Form, sde: SDE, times: Tensor, stage_times: list[Tensor]) -> StagePlan:
    """The plan of a method whose stages are at these times of each step, the last of them its end."""
    t = torch.stack(stage_times, 1)
    p, q = form.reading(sde, t)
    columns = dict(rho=form.rho(sde, t).tolist(), scale=form.scale(sde, t).tolist(), p=p.tolist(), q=q.tolist())
    return StagePlan.at(sde, times, stage_t=[list(row) for row in t], **columns)


def stages(tableau: ode.Tableau, denoiser, xt, i: int, plan: StagePlan) -> tuple[Tensor, list[Tensor]]:
    """The step `y_s = y_t + h sum_n b_n k_n`, `k_n = g(y_t + h sum_j a_nj k_j)`, and the k."""
    scale, h, k = plan.scale[i], plan.rho[i][-1] - plan.rho[i][0], []

    def at(n, weights):
        terms = [(scale[n] * h * w, g) for w, g in zip(weights, k, strict=True) if w]
        return combine((scale[n] / scale[0], xt), *terms)

    for n, a in enumerate(tableau.a):
        u = at(n, a) if a else xt
        k.append(denoiser.reading(u, plan.stage_t[i][n], plan.p[i][n], plan.q[i][n]))
    return at(-1, tableau.b), k


class RungeKutta(FixedGrid):
    """An explicit Runge-Kutta method on dy/drho = g, where the variable rho is t, lam or sigma (that is sigma/alpha).

    variable=t integrates dx/dt, lam dx/dlam, and sigma d(x/alpha) = eps d(sigma/alpha), which is EDM's.
    Raises ValueError for another variable.
    """

    kind = "ode"
    tableau: ClassVar[ode.Tableau]

    def __init__(self, variable: Literal["t", "lam", "sigma"] = "sigma"):
        require(variable in FORMS, f"variable must be one of {', '.join(FORMS)}, got {variable}")
        self.variable, self.form = variable, FORMS[variable]()
        self.clock = "t" if variable == "t" else "lam"

    def plan(self, sde, times):
        return stage_plan(self.form, self.tableau.c, sde, times)

    def step(self, denoiser, xt, i, plan, history, noise):
        return stages(self.tableau, denoiser, xt, i, plan)[0]


class Euler(RungeKutta):
    """`y_s = y_t + (rho_s - rho_t) g`; in sigma it is DDIM, in t flow matching's.  Song et al. 2021, eq. 13, arXiv:2011.13456."""

    order = 1
    evaluations = 1
    tableau = ode.EULER


class Heun(RungeKutta):
    """Heun's method, `y_s = y_t + h (g_t + g_s)/2`.  Karras et al. 2022, alg. 1, arXiv:2206.00364 (without its level sigma = 0)."""

    order = 2
    evaluations = 2
    tableau = ode.HEUN


class RK4(RungeKutta):
    """The classical method of order 4.  Hairer, Norsett & Wanner 1993, sec. II.1."""

    order = 4
    evaluations = 4
    tableau = ode.RK4
