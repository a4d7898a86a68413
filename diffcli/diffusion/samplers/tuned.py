"""A walk whose times and weights were fitted to one model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.samplers.form import VForm
from diffcli.diffusion.samplers.multistep import Row, apply

FORM = VForm(1.0)  # of its readings: regular at every level, of about unit size


@dataclass(frozen=True)
class TunedPlan(Plan):
    """A plan with the reading at each time, and a row a step."""

    p: list[float]
    q: list[float]
    rows: list[Row]


class TunedSampler(FixedGrid):
    """`x_{i+1} = W_i0 x_i + sum_{j <= i} W_i,j+1 F_j`: every linear method of one evaluation a step is one, with its own W.

    tables: by the number of steps, their times (steps + 1,) and W (steps, steps + 1), as `diffcli.diffusion.tuning.fit` finds
    them; F is the reading of `VForm(1)`.  It walks these times alone, and has no order, as its steps get no smaller.
    Shaul et al. 2024, arXiv:2403.01329 (the family).
    """

    kind = "ode"
    order = None
    evaluations = 1
    both_ways = False

    def __init__(self, tables: dict[int, tuple[Tensor, Tensor]] | None = None):
        self.tables = tables or {}

    @property
    def memory(self) -> int:
        """All readings of its longest walk."""
        return max(self.tables, default=0)

    @property
    def usual_steps(self) -> int:
        """The most steps it has been fitted for."""
        return max(self.tables, default=FixedGrid.usual_steps)

    def setup(self, denoiser):
        require(bool(self.tables), "this model has not been tuned")

    def plan(self, sde, times):
        there, steps = ", ".join(map(str, sorted(self.tables))) or "none", len(times) - 1
        require(steps in self.tables, f"the model was tuned for {there} steps, got {steps}")
        own, weights = self.tables[steps]
        same = torch.allclose(own, times.to(own), rtol=1e-9, atol=1e-12)
        require(same, "sampler=tuned walks the times that it was fitted with")
        p, q = (c.tolist() for c in FORM.reading(sde, times))
        rows = [Row(row[0], row[i + 1 : 0 : -1]) for i, row in enumerate(weights.tolist())]
        return TunedPlan.at(sde, times, p=p, q=q, rows=rows)

    def step(self, denoiser, xt, i, plan, history, noise):
        history.appendleft(denoiser.reading(xt, plan.t[i], plan.p[i], plan.q[i]))
        return apply(plan.rows[i], xt, history)
