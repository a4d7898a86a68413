"""What a variational bound is asked for, and how its sum over the levels is estimated with an honest error."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.numeric import require
from diffcli.diffusion.prior import Prior, StandardPrior
from diffcli.diffusion.sde import SDE

RECONSTRUCTIONS = 4  # noises of the last term, so that its own error is known


class Bound(NamedTuple):
    """Estimates of an item's terms in nats, (B,) float64 each: `-log p(x_0) <= prior + steps + reconstruction`.

    std_err: of their sum, what the drawn levels and noises leave.  parts (B, J): what each stratum adds to `steps`.
    nfe (B,): evaluations.
    """

    prior: Tensor
    steps: Tensor
    reconstruction: Tensor
    std_err: Tensor
    parts: Tensor
    nfe: Tensor

    @property
    def value(self) -> Tensor:
        """The bound itself, (B,)."""
        return self.prior + self.steps + self.reconstruction


class Part(NamedTuple):
    """An estimate (B,) at one noise eps; `slope` (B,) times `||error||^2`, error = eps_theta - eps, is the random part of it."""

    value: Tensor
    slope: Tensor | None
    error: Tensor
    eps: Tensor


class Strata(NamedTuple):
    """The J parts that the levels are divided into, from the data on: their ends in t (J,), and how much each holds (J,)."""

    low: Tensor
    high: Tensor
    measure: Tensor


class VariationalBound(ABC):
    """`-log p(x_0) <= KL(q(x_1|x_0) || prior) + sum over levels + reconstruction`, estimated item by item.

    times: noises an item, two in each of times/2 strata of the levels: the difference of the two gives an unbiased
    variance.  `setup` is called first.  Raises ValueError unless times is even and at least 2.
    """

    per: str  # what the sum over levels runs over, for figures

    def __init__(self, times: int | Literal["all"] = 64):
        require(
            times == "all" or (times >= 2 and times % 2 == 0),
            f"times must be even and at least 2 (two noises a stratum), or all, got {times}",
        )
        self.times = times
        self.prior: Prior | None = None
        self.levels: int | None = None

    def setup(self, denoiser: Denoiser, prior: Prior | None = None, levels: int | None = None) -> None:
        """prior: of L_T, by default what samplers start from.  levels: of a decoder over bins, None for a density.

        Raises ValueError for a model without a process or without a posterior mean.
        """
        require(
            denoiser.posterior_mean,
            "the model is a free field (cnf, source), whose x0_hat is no posterior mean: it has no variational bound",
        )
        require(
            denoiser.sde.is_process, "a bound runs from noise to data, and a model of one level (levels=one) has no way"
        )
        self.prior, self.levels = prior or StandardPrior(denoiser.sde), levels

    @abstractmethod
    def strata(self, sde: SDE) -> Strata:
        """The strata that `parts` belongs to."""

    @abstractmethod
    def _begin(self, denoiser: Denoiser, x0: Tensor) -> tuple[Tensor, int, int]:
        """Make ready for these items: what is noised, the number of strata, and the noises in each."""

    @abstractmethod
    def _part(self, denoiser: Denoiser, x0: Tensor, j: int, u: Tensor, eps: Tensor, cond: dict) -> "Part":
        """An unbiased estimate of what stratum j adds, at the fraction u (B,) of it."""

    @abstractmethod
    def _reconstruction(self, denoiser: Denoiser, x0: Tensor, eps: Tensor, cond: dict) -> "Part":
        """-log p(x_0 | x) at the least noisy level, at one noise."""

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> Bound:
        """For x0 (B, *S) in model space; `noise` is an ItemNoise of these items."""
        before = evaluations(denoiser)
        x0, count, draws = self._begin(denoiser, x0)

        def eps(name: str) -> Tensor:
            return noise(f"elbo eps {name}").to(x0)

        def part(j: int, k: int) -> Part:
            u = noise.uniform(f"elbo t {j} {k}").double().flatten(1)[:, 0].to(x0.device)
            return self._part(denoiser, x0, j, u, eps(f"{j} {k}"), cond)

        parts = torch.stack([_steadied([part(j, k) for k in range(draws)]) for j in range(count)])  # (J, draws, B)
        last = _steadied([self._reconstruction(denoiser, x0, eps(f"last {k}"), cond) for k in range(RECONSTRUCTIONS)])
        variance = _variance_of_sum(parts) + last.var(0) / len(last)
        nfe = torch.full((x0.shape[0],), (evaluations(denoiser) - before) // x0.shape[0])
        parts = parts.mean(1).T
        return Bound(self.prior.kl(x0), parts.sum(1), last.mean(0), variance.sqrt(), parts, nfe)


def _variance_of_sum(parts: Tensor) -> Tensor:
    """Of `parts.mean(1).sum(0)` for parts (J, draws, B): unbiased from two draws, too large from neighbours where there is one."""
    if parts.shape[1] > 1:
        return (parts.var(1) / parts.shape[1]).sum(0)
    if len(parts) < 2:
        return torch.full_like(parts[0, 0], float("nan"))
    return 0.5 * parts[:, 0].diff(dim=0).square().sum(0) * len(parts) / (len(parts) - 1)


def _steadied(parts: list[Part]) -> Tensor:
    """Estimates (draws, B) of one thing, each without the noise that another one foretells.

    Where eps_theta = w eps + ..., `||error||^2` moves as `(1 - w)^2 ||eps||^2`, whose mean is known: `slope sum c (eps^2 - 1)`
    is taken off, with c = (1 - w)^2 from the next draw, which is independent of this one, so that nothing is biased.
    """
    values = torch.stack([p.value.double() for p in parts])
    if len(parts) < 2 or parts[0].slope is None:
        return values
    for k, part in enumerate(parts):
        other = parts[(k + 1) % len(parts)]
        c = (other.error / other.eps).double().clamp(-1, 0) ** 2  # 1 - w = -error/eps
        values[k] -= part.slope * (c * (part.eps.double() ** 2 - 1)).flatten(1).sum(1)
    return values
