"""What the samplers that choose their own steps share."""

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, Rows
from diffcli.diffusion.endings import Ended
from diffcli.diffusion.numeric import match
from diffcli.diffusion.ode import MAX_NFE, Adaptive, Pair, State
from diffcli.diffusion.samplers.base import Sampler, Samples, straight


class Counted:
    """A function that counts its calls."""

    def __init__(self, fn):
        self.fn, self.calls = fn, 0

    def __call__(self, *args):
        self.calls += 1
        return self.fn(*args)


class AdaptiveODE(Sampler):
    """A sampler whose steps in lam an error estimate chooses, for each item its own; it writes `field`, `pair` and `path`.

    The grid gives the first and last time, and the times at which a callback looks.  The steps are not known beforehand, so
    that `progress` has nothing to wrap.  An item may take max_nfe evaluations of the denoiser.
    Raises ValueError unless 0 < tol < 1 and max_nfe >= 1.
    """

    kind = "ode"
    evaluations = None

    def __init__(self, tol: float, max_nfe: int = MAX_NFE):
        self.solver = Adaptive(tol, max_nfe)

    @abstractmethod
    def field(self, denoiser: Denoiser):
        """One call of the model, `fn((x,), lam (B,)) -> (reading,)`."""

    @abstractmethod
    def pair(self, denoiser: Denoiser, fn) -> Pair:
        """The embedded pair on that field."""

    @abstractmethod
    def path(
        self, denoiser: Denoiser, at: Tensor, tau: Tensor, end: Tensor, x, new, first: State, last: State | None
    ) -> Tensor:
        """x at lam = `at` () within the accepted steps from x at tau to new at end (B,)."""

    def walk(self, denoiser, x, times, noise, callback=None, progress=straight):
        fn = Counted(self.field(denoiser))
        pair = self.pair(denoiser, fn)
        path = partial(self.path, denoiser)
        return run_pair(self, self.solver, pair, fn, denoiser, x, times, callback, path)


def run_pair(
    sampler: Sampler, solver: Adaptive, pair: Pair, fn: Counted, denoiser: Denoiser, x, times, callback, path
) -> Samples:
    """The walk of a pair that asks the denoiser through fn; a callback sees x by `path` within the accepted steps.

    Raises Ended as `Adaptive` does, with t and evaluations of the network.
    """
    lam, rows = denoiser.sde.lam(times), Rows(denoiser)
    frames = None if callback is None else Frames(lam[1:], x, path)
    try:
        (x,), nfe = solver.run(pair, (x,), lam[0].item(), lam[-1].item(), observe=frames)
    except Ended as error:
        at = denoiser.sde.time(torch.tensor(error.at, dtype=torch.float64)).item()
        nfe = error.nfe * rows.each(x.shape[0] * max(1, fn.calls))
        raise error.said(clock="t", at=at, nfe=nfe, who=type(sampler).__name__) from None
    for i, frame in enumerate([] if frames is None else frames.x):
        callback(i + 1, frame)
    # what one call of the denoiser costs at the network: guidance calls it twice
    return Samples(x, nfe * rows.each(x.shape[0] * fn.calls))


class Frames:
    """The states at given values of tau, on each item's own accepted steps."""

    def __init__(self, tau: Tensor, x: Tensor, path):
        self.tau, self.path = tau.to(x.device), path
        self.x = x.repeat(len(tau), *[1] * x.ndim)

    def __call__(
        self, tau: Tensor, end: Tensor, y: State, new: State, first: State, last: State | None, accept: Tensor
    ) -> None:
        for frame, at in zip(self.x, self.tau, strict=True):
            inside = accept & (at > tau) & (at <= end)
            if inside.any():
                frame[inside] = self.path(at, tau, end, y[0], new[0], first, last)[inside]


def hermite(at: Tensor, tau: Tensor, end: Tensor, x: Tensor, new: Tensor, first: State, last: State) -> Tensor:
    """The cubic through the values and slopes at both ends; outside of the step it means nothing."""
    h = end - tau
    u = torch.where(h == 0, 0.0, (at - tau) / h)
    h00, h10, h11 = (1 + 2 * u) * (1 - u) ** 2, h * u * (1 - u) ** 2, h * u**2 * (u - 1)
    a, b, c, d = (match(w, x) for w in (h00, h10, 1 - h00, h11))
    return a * x + b * first[0] + c * new + d * last[0]
