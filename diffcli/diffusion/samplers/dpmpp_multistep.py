"""DPM-Solver++ with a history."""

import math
from typing import Literal

from diffcli.diffusion.samplers.form import X0Form
from diffcli.diffusion.samplers.multistep import Multistep
from diffcli.diffusion.samplers.phi import phi


class DPMpp2M(Multistep):
    """`x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^{-h}) D`, `D = x0_t + (x0_t - x0_u)/(2 r)`,
    `r = (lam_t - lam_u)/h` for u before t.

    Lu et al. 2022, alg. 2, arXiv:2211.01095.
    """

    def __init__(self, final: int | None = None):
        super().__init__(X0Form(), points=2, order=2, final=final)

    def weights(self, i, points, lam):
        drho = math.exp(lam[i + 1]) * -math.expm1(lam[i] - lam[i + 1])
        if points == 1:
            return [drho]
        r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
        return [drho * (1 + 0.5 / r), -drho * 0.5 / r]


class DPMpp3M(Multistep):
    """`x_s = (sigma_s/sigma_t) x_t + alpha_s h (phi_1 D0 + phi_2 D1 + phi_3 D2)`, phi_k at -h, with the divided differences
    `D1_0 = (x0_t - x0_u)/r0`, `D1_1 = (x0_u - x0_v)/r1`, `D1 = D1_0 + r0/(r0 + r1) (D1_0 - D1_1)` and
    `D2 = 2 (D1_0 - D1_1)/(r0 + r1)`.

    released: leave out D2's factor 2, as the released code does, which makes it a method of order 2.
    Lu et al. 2022, app. A, arXiv:2211.01095 (its text stops at order 2; the third order is the released code's).
    """

    def __init__(self, released: bool = False, starter: Literal["ramp", "rk"] = "ramp", final: int | None = None):
        super().__init__(X0Form(), points=3, order=2 if released else 3, starter=starter, final=final)
        self.factor = 1 if released else 2

    def weights(self, i, points, lam):
        h = lam[i + 1] - lam[i]
        one, two, three = (h * math.exp(lam[i + 1]) * phi(k, -h) for k in (1, 2, 3))
        if points == 1:
            return [one]
        r0 = (lam[i] - lam[i - 1]) / h
        if points == 2:  # the derivative by two readings
            return [one + two / r0, -two / r0]
        r1 = (lam[i - 1] - lam[i - 2]) / h
        d10, d11 = (1 / r0, -1 / r0, 0.0), (0.0, 1 / r1, -1 / r1)
        d2 = [(a - b) / (r0 + r1) for a, b in zip(d10, d11, strict=True)]
        d1 = [a + r0 * d for a, d in zip(d10, d2, strict=True)]
        return [one * d0 + two * a + self.factor * three * b for d0, a, b in zip((1, 0, 0), d1, d2, strict=True)]
