"""ODE solvers whose step size belongs to the item: what one item gets never depends on its neighbours."""

from abc import ABC, abstractmethod
from itertools import count, pairwise

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.endings import Ended, bad_rows, check_ends, fine, first_row
from diffcli.diffusion.numeric import match, require

State = tuple[Tensor, ...]  # parts (B, ...), each with its own error scale
MAX_NFE = 10_000  # calls of the model that an item may take, unless told
EPS = 2.0**-52
FEWER = "a larger tol, a larger max_nfe, or a solver of fixed steps"


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


def check_finite(y: State, tau: float, nfe: int, clock: str = "lam") -> None:
    """Raise Ended for the first item of y that is not finite at tau."""
    if not fine(*y):
        bad = torch.stack([bad_rows(part) for part in y]).any(0)
        raise Ended("met a non-finite value", clock=clock, at=tau, nfe=nfe, row=first_row(bad))


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
        check_ends(a, b)
        ends = torch.linspace(a, b, self.steps + 1, dtype=torch.float64)
        for i, (tau, end) in enumerate(pairwise(ends.to(y[0].device))):
            h, stages = (end - tau).expand(batch), []
            for c, weights in zip(self.tableau.c, self.tableau.a, strict=True):
                stages.append(fn(_add(y, h, weights, stages) if weights else y, tau + c * h))
            y = _add(y, h, self.tableau.b, stages)
            check_finite(y, ends[i + 1].item(), (i + 1) * len(self.tableau.c))
        return y, torch.full((batch,), self.steps * len(self.tableau.c), dtype=torch.int64)


class Pair(ABC):
    """Two solutions of one step, whose difference is its error: what `Adaptive` needs to know of a method.

    calls: of the model for an attempt, after the reading at the step's start.
    power: the factor of a step is `0.9 error^-power`.
    clock: the name of tau in a message.
    longest: step that it may take, where its error could be blind to what happens within one.
    """

    calls: int
    power: float
    clock: str = "lam"
    longest: float = float("inf")

    @abstractmethod
    def read(self, y: State, tau: Tensor) -> State:
        """What one call of the model says at the step's start; an attempt that fails leaves it as it is."""

    @abstractmethod
    def attempt(self, y: State, first: State, tau: Tensor, h: Tensor, k: int) -> tuple[State, State, State | None]:
        """y at tau + h, the error of each part, and the reading there if it has one.

        tau, h (B,), h = 0 for an item that waits; k counts the attempts, of an item as of its batch: what noise is keyed by.
        """

    @abstractmethod
    def start(self, y: State, first: State, tol: float, scales, span: float) -> Tensor:
        """The first step (B,), in the direction of span."""


class Adaptive:
    """The loop of an embedded pair with one step size an item.

    A step is accepted where `max over parts of rms(error / (atol + rtol |y|)) <= 1`; `scales` gives a part's (atol, rtol) in
    units of tol.  One that meets a non-finite value is rejected as one of too large an error is: it may have gone too far.
    An item's evaluations are those that it would take alone.  The host looks at the device once an attempt.
    Raises ValueError unless 0 < tol < 1 and max_nfe >= 1, and Ended where an item begins at a non-finite value, its step
    underflows (with the reason: non-finite values ahead, or an error that no step is small enough for), or it takes more than
    max_nfe evaluations.  Hairer, Norsett & Wanner 1993, sec. II.4.
    """

    def __init__(self, tol: float, max_nfe: int = MAX_NFE):
        require(0 < tol < 1, f"tol must lie between 0 and 1, got {tol}")
        require(max_nfe >= 1, f"max_nfe must be at least 1, got {max_nfe}")
        self.tol, self.max_nfe = float(tol), max_nfe

    def run(self, pair: Pair, y: State, a: float, b: float, scales=None, observe=None) -> tuple[State, Tensor]:
        """From y at tau = a to tau = b; the state there and the evaluations of each item (B,).

        `observe(tau, end, y, new, first, last, accept)` sees every attempt, first and last being the pair's readings.
        """
        scales = scales or [(1.0, 1.0)] * len(y)
        batch, device = y[0].shape[0], y[0].device
        check_ends(a, b)
        span, least = abs(b - a), max(1e-13 * abs(b - a), 4 * EPS * max(abs(a), abs(b)))
        tau = torch.full((batch,), a, dtype=torch.float64, device=device)
        nfe = torch.ones(batch, dtype=torch.int64, device=device)
        first = pair.read(y, tau)
        check_finite((*y, *first), a, 1, pair.clock)
        if a == b:
            return y, nfe.cpu()
        h = pair.start(y, first, self.tol, scales, b - a)
        for k in count():
            active = tau != b
            near = (b - tau - h).abs() <= 1e-12 * span
            h = torch.where(active, torch.where(((b - tau - h) * (b - a) < 0) | near, b - tau, h), torch.zeros_like(h))
            new, error, last = pair.attempt(y, first, tau, h, k)
            nfe += pair.calls * active
            broken = torch.stack([bad_rows(part) for part in (*new, *error)]).any(0)
            error = torch.where(broken, torch.inf, self._norm(error, y, new, scales))
            accept = active & (error <= 1)
            end = torch.where((h == b - tau), torch.full_like(tau, b), tau + h)
            if observe is not None:
                observe(tau, end, y, new, first, last, accept)
            tau, y = torch.where(accept, end, tau), _choose(accept, new, y)
            active = tau != b
            moved = accept & active
            if last is None:
                nfe += moved
            h = h * (0.9 * error.clamp(min=1e-10) ** -pair.power).clamp(0.2, 10.0)
            h = h.clamp(-pair.longest, pair.longest)
            under, over = active & (h.abs() < least), active & (nfe > self.max_nfe)
            goes_on, read, ends = torch.stack([active.any(), moved.any(), (under | over).any()]).tolist()
            if ends:
                raise self._ended(under, over, broken, tau, nfe, pair.clock)
            if not goes_on:
                return y, nfe.cpu()
            if last is not None:
                first = _choose(accept, last, first)
            elif read:
                first = pair.read(y, tau)

    def _norm(self, error: State, y: State, new: State, scales) -> Tensor:
        errors = []
        for e, p, q, (atol, rtol) in zip(error, y, new, scales, strict=True):
            scale = self.tol * (atol + rtol * torch.maximum(p.abs(), q.abs()))
            errors.append(rms(e / scale))
        return torch.stack(errors).amax(0)

    def _ended(self, under: Tensor, over: Tensor, broken: Tensor, tau: Tensor, nfe: Tensor, clock: str) -> Ended:
        row = first_row(under | over)
        if not under[row]:
            why, hint = f"tol = {self.tol:g} takes more than {self.max_nfe} evaluations, stopped", FEWER
        elif broken[row]:
            why, hint = "met a non-finite value, however small the step,", ""
        else:
            why, hint = "the step size underflows, as where the field jumps or has a pole,", FEWER
        return Ended(why, hint, clock, tau[row].item(), int(nfe[row]), row)


def rms(x: Tensor) -> Tensor:
    """The root mean square of each item, (B, ...) -> (B,), in float64."""
    return x.double().flatten(1).square().mean(1).sqrt()


class Embedded(Pair):
    """Dormand-Prince 5(4) on `dy/dtau = fn(y, tau (B,))`; its readings are the slopes.  Dormand & Prince 1980."""

    calls = 6
    power = 0.2

    def __init__(self, fn):
        self.fn = fn

    def read(self, y, tau):
        return self.fn(y, tau)

    def attempt(self, y, first, tau, h, k):
        stages = [first]
        for c, weights in zip(DOPRI5.c[1:], DOPRI5.a[1:], strict=True):
            new = _add(y, h, weights, stages)
            stages.append(self.fn(new, tau + c * h))
        error = tuple(
            match(h, part) * sum(w * s[n] for w, s in zip(DOPRI5.e, stages, strict=True) if w != 0)
            for n, part in enumerate(y)
        )
        return new, error, stages[-1]

    def start(self, y, first, tol, scales, span):
        """A step in which an Euler step would move each part by a hundredth of its scale over tol^(1/5)."""
        rate = [rms(d / (tol * (atol + rtol * p.abs()))) for p, d, (atol, rtol) in zip(y, first, scales, strict=True)]
        h = 0.01 / (torch.stack(rate).amax(0) * tol ** (4 / 5)).clamp(min=1e-10)
        return h.clamp(max=0.05 * abs(span)) * (1 if span > 0 else -1)


class DormandPrince(Adaptive):
    """Dormand-Prince 5(4) with one step size an item: `Adaptive` to the local error tol."""

    def __init__(self, tol: float = 1e-5, max_nfe: int = MAX_NFE):
        super().__init__(tol, max_nfe)

    def solve(self, fn, y: State, a: float, b: float, scales=None, observe=None) -> tuple[State, Tensor]:
        """Integrate `dy/dtau = fn(y, tau (B,))` from a to b; the state at b and the evaluations of each item (B,)."""
        return self.run(Embedded(fn), y, a, b, scales, observe)


def pf_ode(denoiser: Denoiser, **cond):
    """The probability-flow ODE against lam, `fn((x,), lam (B,)) -> (dx/dlam,)`."""

    def fn(y: State, lam: Tensor) -> State:
        return (denoiser.velocity_lam(y[0], denoiser.sde.time(lam), **cond),)

    return fn
