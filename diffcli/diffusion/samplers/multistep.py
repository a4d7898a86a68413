"""Multistep samplers: one history loop, `x_s = a x_t + sum_j b_j g_j` over the last readings g."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from diffcli.diffusion import ode
from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.samplers.form import LamForm
from diffcli.diffusion.samplers.runge_kutta import StagePlan, stage_plan, stages

STARTERS = {2: ode.HEUN, 3: ode.KUTTA3}  # by their order; some steps of order p - 1 lose nothing of an order p


class Row(NamedTuple):
    """The coefficients of one step: of x, of the readings (newest first), and of the noise."""

    x: float
    g: list[float]
    z: float = 0.0


@dataclass(frozen=True)
class Rows(Plan):
    """A plan with the reading at each time, a row a step, and the starter's own plan."""

    p: list[float]
    q: list[float]
    rows: list[Row]
    start: StagePlan | None


class Multistep(FixedGrid):
    """A method on dy/drho = g that reads the model once a step and remembers; it writes `row`.

    points: readings that a step uses once its history is full; `order` is that of the whole method.
    starter: how the first points - 1 steps are made: "ramp", with the 1, 2, ... readings there are and one evaluation a step
    (as released), or "rk", Runge-Kutta steps in rho of one order less than the method's, which keep its order and take as
    many evaluations.
    final: readings that the last step uses, where fewer are steadier; null for all.
    Raises ValueError for another starter, or a final beyond the points.
    """

    kind = "ode"
    evaluations = 1

    def __init__(
        self,
        form: LamForm,
        points: int,
        order: int,
        starter: Literal["ramp", "rk"] = "ramp",
        final: int | None = None,
    ):
        require(starter in ("ramp", "rk"), f"starter must be ramp or rk, got {starter}")
        require(final is None or 1 <= final <= points, f"final must lie between 1 and {points}, got {final}")
        self.form, self.points, self.order, self.starter, self.final = form, points, order, starter, final
        self.memory = points
        self.rk = STARTERS[max(2, order - 1)]
        # a first step of order 1 does no harm to a method of order 2, nor a corrected one (order = points + 1) to one of order 3
        self.declared_for = "starter=rk" if starter == "ramp" and points > 2 and order > 2 else ""
        self.first = points - 1 if starter == "rk" and points > 2 else 0

    def used(self, steps: int) -> list[int]:
        """The readings that each step uses: those there are, and in the last one `final`."""
        used = [min(i + 1, self.points) for i in range(steps)]
        if self.final is not None:
            used[-1] = min(used[-1], self.final)
        return used

    def cost(self, steps):
        return steps + (len(self.rk.b) - 1) * min(self.first, steps)

    @abstractmethod
    def weights(self, i: int, points: int, lam: list[float]) -> list[float]:
        """The w_j of `∫ g drho ~ sum_j w_j g_j` from lam[i] to lam[i + 1], by the readings at lam[i], lam[i - 1], ..."""

    def rows(self, sde, times) -> list[Row]:
        """The steps `x_s = (scale_s/scale_t) x_t + scale_s sum_j w_j g_j`."""
        lam, scale = sde.lam(times).tolist(), self.form.scale(sde, times).tolist()
        return [
            Row(scale[i + 1] / scale[i], [scale[i + 1] * w for w in self.weights(i, points, lam)])
            for i, points in enumerate(self.used(len(times) - 1))
        ]

    def plan(self, sde, times):
        p, q = (c.tolist() for c in self.form.reading(sde, times))
        start = self.start_plan(sde, times[: self.first + 1]) if self.first else None
        return Rows.at(sde, times, p=p, q=q, rows=self.rows(sde, times), start=start)

    def start_plan(self, sde, times) -> StagePlan:
        """The plan of the starter's steps."""
        return stage_plan(self.form, self.rk.c, sde, times)

    def start(self, denoiser, xt, i, plan) -> tuple[Tensor, Tensor]:
        """The starter's step, and the reading at its beginning."""
        xs, k = stages(self.rk, denoiser, xt, i, plan.start)
        return xs, k[0]

    def step(self, denoiser, xt, i, plan, history, noise):
        if i < self.first:
            xs, g = self.start(denoiser, xt, i, plan)
            history.appendleft(g)
            return xs
        history.appendleft(denoiser.reading(xt, plan.t[i], plan.p[i], plan.q[i]))
        row = plan.rows[i]
        return apply(row, xt, history, noise(i + 1) if row.z else None)


def apply(row: Row, xt: Tensor, readings, z: Tensor | None = None) -> Tensor:
    """`a xt + sum_j b_j readings_j + c z`."""
    terms = [(row.x, xt), *((c, readings[j]) for j, c in enumerate(row.g) if c)]
    return combine(*terms, *([] if z is None else [(row.z, z)]))
