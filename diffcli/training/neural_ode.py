"""ODEs that are trained through: torchdiffeq behind one call."""

from collections import deque
from typing import Literal

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from diffcli.diffusion.endings import Ended, fine
from diffcli.errors import NumericalError

CALMER = "a larger loss.tol, loss.solver=rk4, or a smaller optim.lr"
# evaluations at one t, two attempts' worth and more: torchdiffeq sees that its steps vanish by an assert, which python -O drops
WINDOW = 15
METHODS = {"rk45": "dopri5", "rk4": "rk4", "midpoint": "midpoint"}


class NeuralODE:
    """Integrates `dy/dt = field(t, y)` for a tuple y of tensors (B, ...), with gradients for the field's parameters and y.

    Adaptive steps control the error of the joint batch.  The adjoint's own tolerance is taken for gradients of a mean over
    the batch.  Raises NumericalError at a non-finite value, where its steps vanish, or after more than max_nfe evaluations of
    one solve.
    Chen et al. 2018, arXiv:1806.07366 (torchdiffeq).
    """

    def __init__(self, max_nfe: int = 2000):
        if max_nfe < 1:
            raise ValueError(f"max_nfe must be at least 1, got {max_nfe}")
        self.max_nfe = max_nfe

    def __call__(
        self,
        field: nn.Module,
        y: tuple[Tensor, ...],
        t0: float,
        t1: float,
        gradient: Literal["adjoint", "backprop"],
        solver: Literal["rk45", "rk4", "midpoint"],
        tol: float,
        steps: int,
    ) -> tuple[Tensor, ...]:
        times = torch.tensor([t0, t1], dtype=torch.float64, device=y[0].device)
        adaptive = solver == "rk45"
        limit = self.max_nfe if adaptive else None
        options = None if adaptive else {"step_size": (t1 - t0) / steps}
        solve = dict(rtol=tol, atol=tol, method=METHODS[solver], options=options)
        field = Guarded(field, limit)
        try:
            if gradient == "backprop":
                path = odeint(field, y, times, **solve)
            else:
                # of a mean over the batch: an item's adjoint is of the size 1 / (B d)
                fine = tol / y[0].numel()
                weights = tuple(p for p in field.parameters() if p.requires_grad)
                atol = (tol, tol, fine, *[fine] * len(weights))
                path = odeint_adjoint(field, y, times, adjoint_params=weights, adjoint_atol=atol, **solve)
        except AssertionError as error:  # how torchdiffeq says that its steps vanish
            raise NumericalError(f"the ODE of the field cannot be solved to tol = {tol:g} ({error})") from error
        return tuple(part[-1] for part in path)


class Guarded(nn.Module):
    """A field whose evaluations are counted and looked at, in the adjoint's solve too."""

    def __init__(self, field: nn.Module, limit: int | None):
        super().__init__()
        self.field, self.limit, self.count = field, limit, 0
        self.backwards, self.times = False, deque(maxlen=WINDOW)

    def forward(self, t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() != self.backwards:  # the adjoint's solve begins
            self.backwards, self.count = torch.is_grad_enabled(), 0
            self.times.clear()
        self.count += 1
        if self.limit is not None and self.count > self.limit:
            why = f"the field takes more than {self.limit} evaluations in one solve, stopped"
            raise Ended(why, f"a larger loss.integrate.max_nfe, {CALMER}", at=t.item(), nfe=self.count - 1)
        self.times.append(t.item())
        if self.limit is not None and len(self.times) == WINDOW and len(set(self.times)) == 1:
            raise Ended("the step size underflows", CALMER, at=t.item(), nfe=self.count)
        slope = self.field(t, y)
        if not fine(*(part.flatten(1) if part.ndim > 1 else part[:, None] for part in slope)):
            raise Ended("the field is not finite", "a smaller optim.lr", at=t.item(), nfe=self.count)
        return slope
