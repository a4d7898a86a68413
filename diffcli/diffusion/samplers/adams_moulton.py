"""Adams-Bashforth-Moulton in v, with polynomials in the variable of grid=scales: the most exact walk for few evaluations."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.grid import between_scales
from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.form import VForm
from diffcli.diffusion.samplers.multistep import Multistep, Row
from diffcli.diffusion.samplers.phi import gauss_legendre, lagrange_weights
from diffcli.diffusion.samplers.unipc import Corrected, UniPC


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
        return min(points, max(3, int(self.reach / h)))

    def tau(self, lam: Tensor) -> Tensor:
        return between_scales(lam, self.small, self.large)

    def integrals(self, a: float, b: float, count: int) -> list[float]:
        """`∫ u^m drho` over lam from a to b, u = 0 at a and 1 at b, linear in tau."""
        nodes, w = gauss_legendre(b - a)
        ends = torch.tensor([a, b], dtype=torch.float64)
        (first, last), (start, stop) = self.tau(ends), self.form.of_lam(ends)
        u = (self.tau(self.form.to_lam(start + (stop - start) * nodes)) - first) / (last - first)
        return ((stop - start) * (u ** torch.arange(count, dtype=torch.float64)[:, None]) @ w).tolist()

    def weights(self, i, points, lam, corrected=False):
        """Those of the predictor, or of the corrector, whose first reading is the one at lam[i + 1]."""
        points = self.within(points, lam[i + 1] - lam[i])
        end, *tau = self.tau(torch.tensor(lam[i + 1 - points : i + 2][::-1], dtype=torch.float64)).tolist()
        nodes = [(point - tau[0]) / (end - tau[0]) for point in tau]
        nodes = [1.0, *nodes] if corrected else nodes
        return lagrange_weights(nodes, self.integrals(lam[i], lam[i + 1], len(nodes)))

    def plan(self, sde, times):
        plan, scale, correctors = Multistep.plan(self, sde, times), self.form.scale(sde, times).tolist(), []
        for i, points in enumerate(self.used(len(times) - 1)):
            if i > 0 and plan.lam[i + 1] - plan.lam[i] > self.wide:
                correctors.append(Row(plan.rows[i].x, [0.0, *plan.rows[i].g]))  # the predictor once more
            else:
                w = self.weights(i, points, plan.lam, corrected=True)
                correctors.append(Row(scale[i + 1] / scale[i], [scale[i + 1] * c for c in w]))
        return Corrected(**vars(plan), correctors=correctors)
