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
    def corrected(self) -> list[Row]:
        """The rows after the correction of the step before, `a (x_t + sum_j (c_j - b_j) g_j) + ...`, each in one sum.

        c is the corrector's and b the predictor's weight of that step; what else has moved x_t since is kept.
        """
        rows = self.rows[:1]
        for corrector, predicted, row in zip(self.correctors[:-1], self.rows[:-1], self.rows[1:], strict=True):
            change = [c - b for c, b in zip_longest(corrector.g, [0.0, *predicted.g], fillvalue=0.0)]
            g = [row.x * d + b for d, b in zip_longest(change, row.g, fillvalue=0.0)]
            rows.append(Row(row.x, g, row.z))
        return rows


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
        history.appendleft(readings[0])
        row = plan.corrected[i] if i > self.first else plan.rows[i]  # a starter's step needs no correction
        return apply(row, xt, readings)
