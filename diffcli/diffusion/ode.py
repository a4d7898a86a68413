"""ODE solvers whose step size belongs to the item: what one item gets never depends on its neighbours."""

from itertools import pairwise

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match, require
from diffcli.errors import NumericalError

State = tuple[Tensor, ...]  # parts (B, ...), each with its own error scale


class Tableau:
    """An explicit Runge-Kutta method: nodes c, stages a, weights b and, for an embedded pair, the error weights e."""

    def __init__(self, order: int, c, a, b, e=None):
        self.order, self.c, self.a, self.b, self.e = order, c, a, b, e


EULER = Tableau(1, [0], [[]], [1])
HEUN = Tableau(2, [0, 1], [[], [1]], [1 / 2, 1 / 2])
KUTTA3 = Tableau(3, [0, 1 / 2, 1], [[], [1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6])
RK4 = Tableau(4, [0, 1 / 2, 1 / 2, 1], [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])
# Dormand & Prince 1980, RK5(4)7M: the last stage is the next step's first
DOPRI5 = Tableau(
    5,
    [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1],
    [
        [],
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
)


def _add(y: State, h: Tensor, weights, stages: list[State]) -> State:
    """`y + h sum_j w_j k_j`, part by part, h (B,)."""
    return tuple(
        part + match(h, part) * sum(w * k[n] for w, k in zip(weights, stages, strict=True) if w != 0)
        for n, part in enumerate(y)
    )


def _choose(accept: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(match(accept, q).bool(), q, p) for p, q in zip(old, new, strict=True))


def _check_finite(y: State, tau: Tensor, nfe: int) -> None:
    for part in y:
        bad = ~torch.isfinite(part.flatten(1)).all(1)
        if bad.any():
            i = int(bad.nonzero()[0])
            raise NumericalError(
                f"the solver met a non-finite value at lam = {tau[i].item():.4g} after {nfe} evaluations"
            )


class FixedStep:
    """A Runge-Kutta method with `steps` equal steps.  method: heun (order 2) or rk4 (order 4)."""

    METHODS = {"heun": HEUN, "rk4": RK4}

    def __init__(self, method: str = "rk4", steps: int = 32):
        require(method in self.METHODS, f"method must be one of {', '.join(self.METHODS)}, got {method}")
        require(steps >= 1, f"steps must be at least 1, got {steps}")
        self.tableau, self.steps = self.METHODS[method], steps

    def solve(self, fn, y: State, a: float, b: float, scales=None) -> tuple[State, Tensor]:
        """Integrate `dy/dtau = fn(y, tau (B,))` from a to b; the state at b and the evaluations of each item (B,)."""
        batch = y[0].shape[0]
        grid = torch.linspace(a, b, self.steps + 1, dtype=torch.float64, device=y[0].device)
        for i, (tau, end) in enumerate(pairwise(grid)):
            h, stages = (end - tau).expand(batch), []
            for c, weights in zip(self.tableau.c, self.tableau.a, strict=True):
                stages.append(fn(_add(y, h, weights, stages) if weights else y, tau + c * h))
            y = _add(y, h, self.tableau.b, stages)
            _check_finite(y, end.expand(batch), (i + 1) * len(self.tableau.c))
        return y, torch.full((batch,), self.steps * len(self.tableau.c), dtype=torch.int64)


class DormandPrince:
    """Dormand-Prince 5(4) with one step size an item.

    A step is accepted where `max over parts of rms(error / (atol + rtol |y|)) <= 1`; `scales` gives a part's (atol, rtol) in
    units of tol.  Items that reached the end wait, and are not counted.  Raises NumericalError at a non-finite value, a step
    that underflows, or more than max_nfe evaluations.  Hairer, Norsett & Wanner 1993, sec. II.4.
    """

    def __init__(self, tol: float = 1e-5, max_nfe: int = 10_000):
        require(0 < tol < 1, f"tol must lie between 0 and 1, got {tol}")
        self.tol, self.max_nfe = float(tol), max_nfe

    def solve(self, fn, y: State, a: float, b: float, scales=None, observe=None) -> tuple[State, Tensor]:
        """Integrate `dy/dtau = fn(y, tau (B,))` from a to b; the state at b and the evaluations of each item (B,).

        `observe(tau, end, y, new, slope, new_slope, accept)` sees every step.
        """
        scales = scales or [(1.0, 1.0)] * len(y)
        batch, device = y[0].shape[0], y[0].device
        tau = torch.full((batch,), a, dtype=torch.float64, device=device)
        nfe = torch.ones(batch, dtype=torch.int64, device=device)
        first = fn(y, tau)
        h = self._first_step(y, first, scales, b - a)
        while True:
            active = tau != b
            if not active.any():
                return y, nfe.cpu()
            last = (b - tau - h).abs() <= 1e-12 * abs(b - a)
            h = torch.where(active, torch.where(((b - tau - h) * (b - a) < 0) | last, b - tau, h), torch.zeros_like(h))
            stages = [first]
            for c, weights in zip(DOPRI5.c[1:], DOPRI5.a[1:], strict=True):
                new = _add(y, h, weights, stages)
                stages.append(fn(new, tau + c * h))
            nfe += 6 * active
            _check_finite(new, tau, int(nfe.max()))
            error = self._error(y, new, h, stages, scales)
            accept = active & (error <= 1)
            end = torch.where((h == b - tau), torch.full_like(tau, b), tau + h)
            if observe is not None:
                observe(tau, end, y, new, first, stages[-1], accept)
            tau = torch.where(accept, end, tau)
            y, first = _choose(accept, new, y), _choose(accept, stages[-1], first)
            h = h * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 10.0)
            self._guard(h, tau, tau != b, nfe, abs(b - a))

    def _error(self, y: State, new: State, h: Tensor, stages, scales) -> Tensor:
        errors = []
        for n, (atol, rtol) in enumerate(scales):
            err = match(h, y[n]) * sum(w * k[n] for w, k in zip(DOPRI5.e, stages, strict=True) if w != 0)
            scale = self.tol * (atol + rtol * torch.maximum(y[n].abs(), new[n].abs()))
            errors.append((err / scale).double().flatten(1).square().mean(1).sqrt())
        return torch.stack(errors).amax(0)

    def _first_step(self, y: State, first: State, scales, span: float) -> Tensor:
        """A step in which an Euler step would move each part by a hundredth of its scale over tol^(1/5)."""
        rate = []
        for p, d, (atol, rtol) in zip(y, first, scales, strict=True):
            rate.append((d / (self.tol * (atol + rtol * p.abs()))).double().flatten(1).square().mean(1).sqrt())
        h = 0.01 / (torch.stack(rate).amax(0) * self.tol ** (4 / 5)).clamp(min=1e-10)
        return h.clamp(max=0.05 * abs(span)) * (1 if span > 0 else -1)

    def _guard(self, h: Tensor, tau: Tensor, active: Tensor, nfe: Tensor, span: float) -> None:
        worst = int(nfe.max())
        if bool((active & (h.abs() < 1e-13 * span)).any()):
            i = int((active & (h.abs() < 1e-13 * span)).nonzero()[0])
            raise NumericalError(f"the step size underflows at lam = {tau[i].item():.4g} after {worst} evaluations")
        if worst > self.max_nfe and bool(active.any()):
            i = int(active.nonzero()[0])
            raise NumericalError(
                f"tol = {self.tol:g} takes more than {self.max_nfe} evaluations, stopped at lam = {tau[i].item():.4g}"
            )


def pf_ode(denoiser: Denoiser, **cond):
    """The probability-flow ODE against lam, `fn((x,), lam (B,)) -> (dx/dlam,)`."""

    def fn(y: State, lam: Tensor) -> State:
        return (denoiser.velocity_lam(y[0], denoiser.sde.time(lam), **cond),)

    return fn
