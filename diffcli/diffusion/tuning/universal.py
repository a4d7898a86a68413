"""Weights of few steps that are best over many random mixtures, known before any model is."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.adams_moulton import AdamsMoulton
from diffcli.diffusion.samplers.base import FixedGrid
from diffcli.diffusion.samplers.multistep import Row, apply
from diffcli.diffusion.samplers.tuned import FORM, TunedPlan
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.tuning.linear import weights_of
from diffcli.diffusion.tuning.reference import Reference, refined
from diffcli.diffusion.tuning.weights import fitted_weights

DIMENSIONS = (1, 2, 4, 8, 16, 32)
STARTS = 24  # of each mixture
PIECES = 60  # of the fine walk at least
DIGITS = 2.0**20  # to which weights are rounded: the same on machines whose sums differ in the last bits
RIDGE = 1e-6


def random_mixture(seed: int) -> GaussianMixture:
    """1 to 8 components in 1 to 32 dimensions, their widths from 0.2 to 0.7, means spread by 0.5 to 2.5, log-uniform."""
    rng = torch.Generator().manual_seed(seed)
    d = DIMENSIONS[seed % len(DIMENSIONS)]
    k = 1 + int(torch.randint(8, (), generator=rng))
    spread = math.exp(_between(math.log(0.5), math.log(2.5), rng, 1).item())
    widths = torch.exp(_between(math.log(0.2), math.log(0.7), rng, k))
    a = torch.randn(k, d, d, dtype=torch.float64, generator=rng) / math.sqrt(d)
    covs = (0.7 * a @ a.mT + 0.3 * torch.eye(d, dtype=torch.float64)) * widths[:, None, None] ** 2
    weights = _between(0.2, 1.2, rng, k)
    means = spread * torch.randn(k, d, dtype=torch.float64, generator=rng)
    return GaussianMixture(weights / weights.sum(), means, covs)


def _between(low: float, high: float, rng: torch.Generator, n: int) -> Tensor:
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=rng)


class _Member(Denoiser):
    """The exact model of `scale` times a random mixture on states of 32 columns, those beyond its d zero, and x / sqrt(d)."""

    def __init__(self, sde: SDE, seed: int, scale: float):
        super().__init__(sde)
        self.mixture, self.scale = random_mixture(seed), scale
        self.d = self.mixture.means.shape[1]

    def parts(self, xt, t, **cond):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        f, size = torch.zeros_like(xt), math.sqrt(self.d) / self.scale
        f[:, : self.d] = self.mixture.score(xt[:, : self.d] * size, alpha, sigma / self.scale) / (size * self.scale**2)
        return 1 / alpha, sigma**2 / alpha, f


class _Members:
    """`count` random mixtures, and starts of each."""

    def __init__(self, sde: SDE, count: int, scale: float):
        self.models = [_Member(sde, seed, scale) for seed in range(count)]
        rng = torch.Generator().manual_seed(count)
        self.starts = sde.prior_std * torch.randn(count * STARTS, max(DIMENSIONS), dtype=torch.float64, generator=rng)
        for i, model in enumerate(self.models):
            rows = self.starts[i * STARTS : (i + 1) * STARTS]
            rows /= math.sqrt(model.d)
            rows[:, model.d :] = 0

    def __call__(self, rows: range) -> Denoiser:
        return self.models[rows.start // STARTS]


class Universal(FixedGrid):
    """The linear method of one evaluation a step whose weights are best over many random mixtures, on any times, of any model.

    At the first use of some times it walks `mixtures` exact models, drawn once and for all (`random_mixture`, sigma_data times as
    wide), and takes each step's weights by least squares (`weights.fitted_weights`); that costs a second, and nothing of the
    model.  Beyond `most` steps it is AdamsMoulton.  Best with Scales of the same small and large.

    small, large and the law of the mixtures were picked by looking at the four cases of `benchmarks/samplers.py`.  On ten other
    mixtures, each on VP, VE and flow, its error at NFE 5, 10, 20 was 0.42, 0.37, 0.45 (median) of that of AdamsMoulton on Scales'
    own settings, and above it in 5, 3 and 8 of 30: up to 5 times at 5 (eight in a ring) and at 20 (a grid of narrow peaks).
    Raises ValueError unless 1 <= mixtures <= 1000, 0 <= most <= 99 and sigma_data > 0.
    """

    kind = "ode"
    order = None  # its steps get no smaller
    evaluations = 1
    both_ways = False

    def __init__(
        self, small: float = 0.25, large: float = 10.0, sigma_data: float = 1.0, mixtures: int = 24, most: int = 24
    ):
        require(1 <= mixtures <= 1000, f"mixtures must lie between 1 and 1000, got {mixtures}")
        require(0 <= most <= 99, f"most must lie between 0 and 99, got {most}")
        require(sigma_data > 0, f"sigma_data must be above 0, got {sigma_data}")
        self.begun = AdamsMoulton(small=small, large=large)
        self.sigma_data, self.mixtures, self.most = float(sigma_data), mixtures, most
        self.memory = max(most, self.begun.memory + 1)  # one more, as a step corrects the one before
        self.kept: dict[tuple[SDE, tuple[float, ...]], list[list[float]]] = {}  # goes to other processes with it

    @torch.no_grad()
    def _weights(self, sde: SDE, at: Tensor) -> Tensor:
        base = weights_of(self.begun, sde, at)
        if len(at) - 1 > self.most:
            return base
        bound = _Members(sde, self.mixtures, self.sigma_data)
        reference = Reference(bound, bound.starts, refined(sde, at, PIECES), STARTS)
        found, _ = fitted_weights(bound, bound.starts, at, base, reference.at, STARTS, RIDGE)
        return torch.round(found * DIGITS) / DIGITS

    def plan(self, sde, times):
        p, q = (c.tolist() for c in FORM.reading(sde, times))
        key = (sde, tuple(times.tolist()))
        if key not in self.kept:
            self.kept[key] = self._weights(sde, times).tolist()
        # of a reading that AdamsMoulton has forgotten there is round-off left
        rows = [Row(row[0], row[i + 1 : 0 : -1][: self.memory]) for i, row in enumerate(self.kept[key])]
        return TunedPlan.at(sde, times, p=p, q=q, rows=rows)

    def step(self, denoiser, xt, i, plan, history, noise):
        history.appendleft(denoiser.reading(xt, plan.t[i], plan.p[i], plan.q[i]))
        return apply(plan.rows[i], xt, history)
