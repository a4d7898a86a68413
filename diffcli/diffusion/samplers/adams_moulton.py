"""Adams-Bashforth-Moulton in v, with polynomials in the variable of grid=scales: the most exact walk for few evaluations."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.grid import between_scales
from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.form import VForm
from diffcli.diffusion.samplers.multistep import Multistep, Row
from diffcli.diffusion.samplers.phi import gauss_legendre, lagrange_weights
from diffcli.diffusion.samplers.unipc import Corrected, UniPC


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@lru_cache(2**12)  # every batch walks the same grid
def weights_at(c: float, small: float, large: float, lam: tuple[float, ...], corrected: bool) -> tuple[float, ...]:
    """The w_j of `∫ F dphi ~ sum_j w_j F_j` over the last step of lam, by a polynomial in tau through the readings, newest first:
    all before the step's end, and the one there too if corrected.
    """
    form = VForm(c)
    rho, (nodes, w) = form.of_lam(f64(lam[-2:])), gauss_legendre(lam[-1] - lam[-2])
    inside = form.to_lam(rho[0] + rho.diff() * nodes)
    end, start, *before = between_scales(f64(lam[::-1]), small, large)
    u = (between_scales(inside, small, large) - start) / (end - start)  # 0 at the step's beginning, 1 at its end
    readings = [((tau - start) / (end - start)).item() for tau in (*[end] * corrected, start, *before)]
    moments = rho.diff() * (u ** torch.arange(len(readings), dtype=torch.float64)[:, None] @ w)
    return tuple(lagrange_weights(readings, moments.tolist()))


class AdamsMoulton(UniPC):
    """UniPC on `d(x/r) = -F dphi` (v at sigma_data = 1), its polynomials in `tau = log((s + small)/(s + large))`, s = sigma/alpha.

    F is a power series in s where s is small, and in 1/s where it is large, as tau is and lam is not; so at both ends the
    polynomial holds over steps that are wide in lam, as those of grid=scales with the same small and large are.
    A step of width h in lam uses at most `order` readings, and beyond the third only those with `readings * h <= reach`.  A
    step wider than `wide` is not corrected, except the first: there the correction would magnify the predictor's error.
    Raises ValueError for an order outside 1 to 5, unless 0 < small < large, 0 < reach and 0 <= wide.
    Predictor and corrector: Zhao et al. 2023, arXiv:2302.04867; Hairer, Norsett & Wanner 1993, sec. III.1.
    """

    def __init__(
        self,
        order: int = 5,
        sigma_data: float = 1.0,
        small: float = 0.07,
        large: float = 8.0,
        reach: float = 1.5,
        wide: float = 1.0,
        starter: Literal["ramp", "rk"] = "ramp",
        final: int | None = None,
    ):
        require(1 <= order <= 5, f"order must lie between 1 and 5, got {order}")
        require(0 < small < large, f"small must lie between 0 and large, got {small} and {large}")
        require(reach > 0 and wide >= 0, f"reach must be above 0 and wide not below it, got {reach} and {wide}")
        # the corrector adds one order; Kutta's three stages start no method of more than order 4
        Multistep.__init__(self, VForm(sigma_data), order, min(order + 1, 4), starter, final)
        self.small, self.large, self.reach, self.wide = float(small), float(large), reach, wide

    def within(self, points: int, h: float) -> int:
        """The readings that a step of width h uses, of so many."""
        return min(points, max(3, int(self.reach / abs(h))))

    def weights(self, i, points, lam, corrected=False):
        """Those of the predictor, or of the corrector, whose first reading is the one at lam[i + 1]."""
        points = self.within(points, lam[i + 1] - lam[i])
        window = tuple(lam[i + 1 - points : i + 2])
        return list(weights_at(self.form.c, self.small, self.large, window, corrected))

    def plan(self, sde, times):
        plan, scale, correctors = Multistep.plan(self, sde, times), self.form.scale(sde, times).tolist(), []
        for i, points in enumerate(self.used(len(times) - 1)):
            if i > 0 and abs(plan.lam[i + 1] - plan.lam[i]) > self.wide:
                correctors.append(Row(plan.rows[i].x, [0.0, *plan.rows[i].g]))  # the predictor once more
            else:
                w = self.weights(i, points, plan.lam, corrected=True)
                correctors.append(Row(scale[i + 1] / scale[i], [scale[i + 1] * c for c in w]))
        return Corrected(**vars(plan), correctors=correctors)
