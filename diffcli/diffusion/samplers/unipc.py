"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.adams import form_of
from diffcli.diffusion.samplers.multistep import Multistep, Row, Rows, apply
from diffcli.diffusion.samplers.phi import lagrange_weights, nodes_in_step


@dataclass(frozen=True)
class Corrected(Rows):
    """A plan with the corrector's row of each step: the first reading is the one at its end."""

    correctors: list[Row]

    @cached_property
    def corrections(self) -> list[Row]:
        """What the correctors add to the predicted x_s, `x_s + sum_j (c_j - b_j) g_j`: what else moved it since is kept."""
        pairs = zip(self.correctors, self.rows, strict=True) if self.correctors else []
        weights = (zip_longest(row.g, [0.0, *predicted.g], fillvalue=0.0) for row, predicted in pairs)
        return [Row(1.0, [c - b for c, b in both]) for both in weights]


class UniPC(Multistep):
    """Predict x_s by the last p readings, and once the model was read there, correct it by these and the new one: order p + 1.

    Both are Lagrange polynomials in lam, integrated in closed form; the corrected x_s is not read again.
    variant: where one slope alone is unknown (p = 2 predicting, p = 1 correcting), `∫ u drho` is `drho / 2` (bh2), half of
    `h drho/dlam` at the end (bh1), as released, or exact.
    Raises ValueError for an order p outside 1 to 3, another variable or another variant.
    Zhao et al. 2023, alg. 5-8 and app. F, arXiv:2302.04867.
    """

    def __init__(
        self,
        order: int = 3,
        variable: Literal["x0", "eps", "v"] = "x0",
        sigma_data: float = 1.0,
        variant: Literal["bh1", "bh2", "exact"] = "bh2",
        starter: Literal["ramp", "rk"] = "ramp",
        final: int | None = None,
    ):
        require(1 <= order <= 3, f"order must lie between 1 and 3, got {order}")
        require(variant in ("bh1", "bh2", "exact"), f"variant must be one of bh1, bh2, exact, got {variant}")
        super().__init__(form_of(variable, sigma_data), order, order + 1, starter, final)
        self.variant = variant

    def moments(self, a: float, b: float, count: int) -> list[float]:
        """The form's `∫ u^m drho`, two of them as the variant has them."""
        found = self.form.moments(a, b, count)
        if count == 2 and self.variant != "exact":
            found[1] = 0.5 * (found[0] if self.variant == "bh2" else (b - a) * self.form.slope(b))
        return found

    def weights(self, i, points, lam):
        return lagrange_weights(nodes_in_step(i, points, lam), self.moments(lam[i], lam[i + 1], points))

    def plan(self, sde, times):
        plan, scale = super().plan(sde, times), self.form.scale(sde, times).tolist()
        correctors = []
        for i, points in enumerate(self.used(len(times) - 1)):
            nodes = [1.0, *nodes_in_step(i, points, plan.lam)]
            w = lagrange_weights(nodes, self.moments(plan.lam[i], plan.lam[i + 1], points + 1))
            correctors.append(Row(scale[i + 1] / scale[i], [scale[i + 1] * c for c in w]))
        return Corrected(**vars(plan), correctors=correctors)

    def step(self, denoiser, xt, i, plan, history, noise):
        if i < self.first:
            return super().step(denoiser, xt, i, plan, history, noise)
        readings = [denoiser.reading(xt, plan.t[i], plan.p[i], plan.q[i]), *history]
        if i > self.first:  # a starter's step needs no correction
            xt = apply(plan.corrections[i - 1], xt, readings)
        history.appendleft(readings[0])
        return apply(plan.rows[i], xt, readings)
