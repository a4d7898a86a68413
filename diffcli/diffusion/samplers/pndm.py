"""PNDM: classical formulas with DDIM's step in the place of a straight line."""

import math
from typing import Literal

from diffcli.diffusion import ode
from diffcli.diffusion.numeric import combine
from diffcli.diffusion.samplers.form import EpsForm
from diffcli.diffusion.samplers.multistep import Multistep
from diffcli.diffusion.samplers.runge_kutta import stage_plan_at

ADAMS = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


class PNDM(Multistep):
    """`x_s = DDIM(x_t, (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24)` over the last four eps, as if the steps in sigma/alpha were equal,
    which they are not: order 2.

    starter: "rk" makes the first three steps by the classical Runge-Kutta formula with the middle in t, four evaluations each
    (F-PNDM); "ramp" uses the formulas of 1, 2, 3 readings first, one evaluation a step.
    Raises ValueError for another starter.  Liu et al. 2022, eq. 11-13 and app. A.4, arXiv:2202.09778.
    """

    def __init__(self, starter: Literal["rk", "ramp"] = "rk"):
        super().__init__(EpsForm(), points=4, order=2, starter=starter)
        self.rk, self.first = ode.RK4, 3 if starter == "rk" else 0

    def weights(self, i, points, lam):
        drho = math.exp(-lam[i + 1]) - math.exp(-lam[i])
        return [drho * w for w in ADAMS[points]]

    def start_plan(self, sde, times):
        t, s = times[:-1], times[1:]
        m = (t + s) / 2
        return stage_plan_at(self.form, sde, times, [t, m, m, s, s])

    def start(self, denoiser, xt, i, plan):
        plan, e = plan.start, []
        scale, rho = plan.scale[i], plan.rho[i]

        def ddim(n, eps):  # from t to the stage's time
            return combine((scale[n] / scale[0], xt), (scale[n] * (rho[n] - rho[0]), eps))

        for n in range(4):
            u = ddim(n, e[-1]) if e else xt
            e.append(denoiser.reading(u, plan.stage_t[i][n], plan.p[i][n], plan.q[i][n]))
        mean = combine(*((b, eps) for b, eps in zip(ode.RK4.b, e, strict=True)))
        return ddim(-1, mean), e[0]
