"""Times and weights of few steps, fitted to one model by least squares against its own fine walk."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.grid import Grid
from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import Sampler, straight
from diffcli.diffusion.samplers.tuned import TunedSampler
from diffcli.diffusion.tuning.linear import weights_of
from diffcli.diffusion.tuning.reference import Reference, refined
from diffcli.diffusion.tuning.warp import improve, warped
from diffcli.diffusion.tuning.weights import fitted_weights

Bound = Callable[[range], Denoiser]


class Tuned(NamedTuple):
    """times (steps + 1,), decreasing; weights (steps, steps + 1) of `TunedSampler`, None where times alone were fitted; float64."""

    times: Tensor
    weights: Tensor | None


class Fit(NamedTuple):
    """What was found, its error before and after on held-out starts, and the evaluations of the model that each start took.

    The error is the median over starts of `||x - x_ref|| / (alpha sqrt(d))` at the last time.
    """

    tuned: Tuned
    before: float
    after: float
    nfe: int


class _Walks:
    """Walks of one set of starts, in batches, and their distance to the reference; `nfe` counts them for each start."""

    def __init__(self, bound: Bound, starts: Tensor, times: Tensor, pieces: int, batch: int):
        self.bound, self.starts, self.batch = bound, starts, batch
        self.sde = bound(range(1)).sde
        fine = refined(self.sde, times, pieces)
        self.reference, self.nfe = Reference(bound, starts, fine, batch), len(fine) - 1
        self.scale = self.sde.alpha(times[-1]).item() * starts[0].numel() ** 0.5

    def error(self, x: Tensor) -> Tensor:
        """The error of each start as a vector (B, d), float64, in units whose square is the mean over dimensions."""
        return (x - self.reference.end).double().flatten(1) / self.scale

    def walked(self, sampler: Sampler, times: Tensor) -> Tensor:
        """The error of a sampler's end."""
        self.nfe += sampler.cost(len(times) - 1)
        rows = [range(i, min(i + self.batch, len(self.starts))) for i in range(0, len(self.starts), self.batch)]
        ends = [sampler.walk(self.bound(r), self.starts[r.start : r.stop], times, None).x for r in rows]
        return self.error(torch.cat(ends))

    def fitted(self, base: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Weights fitted at these times, and the error at the end."""
        self.nfe += len(times) - 1
        weights, x = fitted_weights(self.bound, self.starts, times, base, self.reference.at, self.batch)
        return weights, self.error(x)


@torch.no_grad()
def fit(
    bound: Bound,
    sampler: Sampler,
    grid: Grid,
    steps: int,
    starts: Tensor,
    *,
    held: int,
    what: Literal["times", "all"] = "all",
    rounds: int = 4,
    batch: int = 64,
    pieces: int = 100,
    progress: Callable[[Iterable[int]], Iterable[int]] = straight,
) -> Fit:
    """Fit `steps` steps to a model, begun at `sampler` on `grid`, so that they end where its own fine walk ends.

    bound(rows): the denoiser with the conditions of these rows of starts; starts (B, *S): x at the first time.  The last
    `held` starts judge and are never fitted on; what is not better on them than the beginning is not taken.
    what: the times alone, for this sampler; or also the weights of every step (`weights.fitted_weights`), for `TunedSampler`.
    rounds: Gauss-Newton steps of the times (`warp.improve`); 0 leaves them, and fits weights only.
    pieces: steps of the fine walk at least, of a sampler of order 4; at least eight for each of the steps.
    Raises ValueError for a sampler with noise or with steps of its own choice, and for weights unless it takes one evaluation
    a step.
    """
    n, sde = len(starts) - held, bound(range(1)).sde
    require(held >= 1 and n >= 1, f"some starts must be fitted on and some held out, got {n} and {held}")
    fits = sampler.kind == "ode" and sampler.evaluations is not None
    require(fits, "only a sampler of the ODE that walks a grid can be fitted")
    times, pieces = grid(sde, steps), max(pieces, 8 * steps)
    base = weights_of(sampler, sde, times) if what == "all" else None  # refuses before any work
    seen = _Walks(bound, starts[:n], times, pieces, batch)
    judge = _Walks(lambda rows: bound(range(n + rows.start, n + rows.stop)), starts[n:], times, pieces, batch)

    def error(numbers: Tensor) -> Tensor:
        at = warped(sde, times, numbers)
        return seen.walked(sampler, at) if base is None else seen.fitted(weights_of(sampler, sde, at), at)[1]

    numbers = improve(error, steps, rounds, progress)
    found = [Tuned(times, base), _tuned(seen, sampler, warped(sde, times, numbers), what)]
    if what == "all":
        found.append(_tuned(seen, sampler, times, what))
    errors = [_median(judge.walked(_walker(sampler, one), one.times)) for one in found]
    best = min(range(len(found)), key=errors.__getitem__)
    return Fit(found[best], errors[0], errors[best], seen.nfe)


def _tuned(seen: _Walks, sampler: Sampler, times: Tensor, what: str) -> Tuned:
    return Tuned(times, seen.fitted(weights_of(sampler, seen.sde, times), times)[0] if what == "all" else None)


def _walker(sampler: Sampler, tuned: Tuned) -> Sampler:
    if tuned.weights is None:
        return sampler
    return TunedSampler({len(tuned.times) - 1: (tuned.times, tuned.weights)})


def _median(error: Tensor) -> float:
    size = error.norm(dim=1)
    return torch.where(size.isnan(), torch.inf, size).median().item()  # a walk that ends in nan is the worst
