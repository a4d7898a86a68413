"""What stands at t_max in place of the data: N(0, prior_std^2 I), or the Gaussian with the moments of the noised data."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE

if TYPE_CHECKING:  # the losses need the bound, which needs this
    from diffcli.diffusion.loss.base import TrainingSet

LARGEST = 4096  # dimensions whose covariance is still decomposed: 128 MiB, half a minute


class Prior(ABC):
    """A density at t_max."""

    def __init__(self, sde: SDE):
        t = torch.tensor(sde.t_max, dtype=torch.float64)
        self.sde, self.alpha, self.sigma = sde, sde.alpha(t).item(), sde.sigma(t).item()

    @abstractmethod
    def log_prob(self, x1: Tensor) -> Tensor:
        """log p_1(x1) in nats (B,), float64."""

    @abstractmethod
    def kl(self, x0: Tensor) -> Tensor:
        """L_T = KL(N(alpha x0, sigma^2 I) || p_1) in nats (B,), float64, for x0 (B, *S)."""


class StandardPrior(Prior):
    """N(0, prior_std^2 I), which samplers start from."""

    def log_prob(self, x1):
        return self.sde.prior_log_prob(x1)

    def kl(self, x0):
        s = self.sde.prior_std
        ratio = (self.sigma / s) ** 2
        square = (self.alpha * x0.double().flatten(1) / s).square().sum(1)
        return 0.5 * (x0[0].numel() * (ratio - 1 - math.log(ratio)) + square)


class MatchedPrior(Prior):
    """N(alpha m, alpha^2 C + sigma^2 I), where m (d,) and C (d, d) are the mean and covariance of the data.

    What it leaves out of p_1 is of third order in alpha/sigma.  Raises ValueError for moments of another shape.
    """

    def __init__(self, sde: SDE, mean: Tensor, cov: Tensor):
        super().__init__(sde)
        d = mean.numel()
        require(cov.shape == (d, d), f"a covariance of {d} dimensions is ({d}, {d}), got {tuple(cov.shape)}")
        variances, self.axes = torch.linalg.eigh(cov.double())
        self.mean = mean.double().flatten()
        self.variances = self.alpha**2 * variances.clamp(min=0) + self.sigma**2

    def _whitened(self, x: Tensor) -> Tensor:
        """x (B, *S) minus the mean, along the axes, in standard deviations."""
        mean, axes, variances = (a.to(x.device) for a in (self.alpha * self.mean, self.axes, self.variances))
        return (x.double().flatten(1) - mean) @ axes / variances.sqrt()

    def log_prob(self, x1):
        z = self._whitened(x1)
        return -0.5 * (z.square().sum(1) + (2 * math.pi * self.variances).log().sum().item())

    def kl(self, x0):
        ratio = self.sigma**2 / self.variances
        constant = (ratio - 1 - ratio.log()).sum().item()
        return 0.5 * (constant + self._whitened(self.alpha * x0).square().sum(1))


def moments(items: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of items (N, *S) in float64, some at a time.  Raises ValueError for fewer than 2."""
    n, d = len(items), items[0].numel()
    require(n >= 2, f"a covariance needs at least 2 items, got {n}")
    parts = items.flatten(1).split(chunk)
    mean = sum(part.double().sum(0) for part in parts) / n
    cov = torch.zeros(d, d, dtype=torch.float64)
    for part in parts:
        centred = part.double() - mean
        cov += centred.T @ centred
    return mean, cov / (n - 1)


def mixture_moments(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of a mixture: `C = sum_k w_k (C_k + (m_k - m)(m_k - m)^T)`."""
    mean = mixture.weights @ mixture.means
    apart = mixture.means - mean
    return mean, torch.einsum("k,kij->ij", mixture.weights, mixture.covs) + apart.T * mixture.weights @ apart


def known_mixture(denoiser: Denoiser, data: "TrainingSet") -> GaussianMixture | None:
    """The model's own mixture, else that of the data, else None."""
    own = [m.mixture for m in denoiser.modules() if isinstance(m, Exact)]
    return own[0] if own else data.mixture


def data_moments(denoiser: Denoiser, data: "TrainingSet", asked: str) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the model's own mixture, else of the data's, else of the training items, on the CPU.

    Raises ValueError beyond `LARGEST` dimensions, which names what asked for them.
    """
    d = math.prod(data.shape)
    require(d <= LARGEST, f"{asked} decomposes a covariance of at most {LARGEST} dimensions, the data have {d}")
    known = known_mixture(denoiser, data)
    mean, cov = moments(data.items()) if known is None else mixture_moments(known)
    return mean.cpu(), cov.cpu()


def matched_prior(denoiser: Denoiser, data: "TrainingSet") -> MatchedPrior:
    """The prior with the moments of `data_moments`.  Raises ValueError beyond `LARGEST` dimensions."""
    return MatchedPrior(denoiser.sde, *data_moments(denoiser, data, "prior=moments"))
