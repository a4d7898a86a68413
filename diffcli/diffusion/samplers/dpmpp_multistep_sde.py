"""DPM-Solver++ with a history, on the SDE."""

import math
from typing import Literal

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import Plan
from diffcli.diffusion.samplers.dpmpp_multistep import DPMpp2M, DPMpp3M
from diffcli.diffusion.samplers.eta import check_eta, damping
from diffcli.diffusion.samplers.multistep import Multistep, Row
from diffcli.diffusion.samplers.phi import phi


class Damped(Multistep):
    """A multistep method in x0, on the SDE of eta: its weights are its own in the clock `(1 + eta^2) lam`.

    `x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t + alpha_s ∫ (1 + eta^2) e^{-(1 + eta^2)(lam_s - l)} x0(l) dl
    + sigma_s sqrt(1 - e^{-2 eta^2 h}) z`.  The noise of a step reaches x0 in the next.  Order 2 at most is
    declared, that of the weak error with noise.
    """

    def __init__(self, eta: float, **settings):
        super().__init__(**settings)
        self.eta = check_eta(eta)
        self.kind = "sde" if self.eta else "ode"
        self.order, self.declared_for = min(self.order, 2), ""  # weakly, whatever the readings and the starter

    def rows(self, sde, times):
        path = Plan.at(sde, times)
        return [self.row(path, i, points, self.weights) for i, points in enumerate(self.used(len(times) - 1))]

    def row(self, path: Plan, i: int, points: int, weights) -> Row:
        """Step i by these weights of its readings, the last `points` or those of a corrector."""
        h = path.lam[i + 1] - path.lam[i]
        keep, _, fresh = damping(self.eta, h)
        lam = path.lam[i + 1 - points : i + 2]
        clock = [(1 + self.eta**2) * (l - path.lam[i + 1]) for l in lam]  # noqa: E741 - the notation of the papers
        g = [path.alpha[i + 1] * w for w in weights(points - 1, points, clock)]
        return Row(path.sigma[i + 1] / path.sigma[i] * keep, g, path.sigma[i + 1] * fresh)


class DPMpp2MSDE(Damped, DPMpp2M):
    """`x_s = (sigma_s/sigma_t) e^{-k h} x_t + alpha_s (1 - e^{-H}) D + sigma_s sqrt(1 - e^{-2 k h}) z`, `k = eta^2`,
    `H = (1 + k) h`, `D = x0_t + (x0_t - x0_u)/(2 r)`, `r = (lam_t - lam_u)/h` for u before t.

    variant: "midpoint" as above, or "heun", where the slope's weight is that of its exact integral, `H phi_2(-H)/r`.
    eta = 0 is DPM-Solver++(2M); k-diffusion's eta is this k.  Raises ValueError for another variant or eta < 0.
    Lu et al. 2022, app. A (SDE-DPM-Solver++(2M)), arXiv:2211.01095.
    """

    def __init__(
        self,
        eta: float = 1.0,
        variant: Literal["midpoint", "heun"] = "midpoint",
        final: int | None = None,
    ):
        require(variant in ("midpoint", "heun"), f"variant must be midpoint or heun, got {variant}")
        super().__init__(eta, final=final)
        self.variant = variant

    def weights(self, i, points, lam):
        if self.variant == "midpoint" or points == 1:
            return super().weights(i, points, lam)
        h = lam[i + 1] - lam[i]
        r = (lam[i] - lam[i - 1]) / h
        one, two = (h * math.exp(lam[i + 1]) * phi(k, -h) for k in (1, 2))
        return [one + two / r, -two / r]


class DPMpp3MSDE(Damped, DPMpp3M):
    """`x_s = (sigma_s/sigma_t) e^{-k h} x_t + alpha_s H (phi_1 D0 + phi_2 D1 + phi_3 D2) + sigma_s sqrt(1 - e^{-2 k h}) z`,
    phi_j at -H, `k = eta^2`, `H = (1 + k) h`, with the divided differences D of DPM-Solver++(3M).

    eta = 0 is DPM-Solver++(3M) with its starter "ramp"; with noise too the order is 2.  k-diffusion's eta is this k.
    released: leave out D2's factor 2, as k-diffusion does.  Raises ValueError for eta < 0.
    Lu et al. 2022, app. A, arXiv:2211.01095 (its text stops at order 2; the third order is the released code's).
    """

    def __init__(self, eta: float = 1.0, released: bool = False, final: int | None = None):
        super().__init__(eta, released=released, final=final)
