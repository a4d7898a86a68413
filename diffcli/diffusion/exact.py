"""Gaussian mixtures, whose score, density and posterior mean are known at every level: what all else is checked against."""

import math

import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE


class GaussianMixture(nn.Module):
    """`p(x) = sum_k w_k N(x; m_k, C_k)` in d dimensions; under `x_t = alpha x + sigma eps` it stays one, with means
    `alpha m_k` and covariances `alpha^2 C_k + sigma^2 I`.  Everything is computed in float64.

    weights (K,) summing to 1, means (K, d), covs (K, d, d) symmetric positive definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor):
        super().__init__()
        weights, means, covs = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covs))
        k, d = means.shape
        require(
            weights.shape == (k,) and covs.shape == (k, d, d), "weights (K,), means (K, d), covs (K, d, d) disagree"
        )
        variances, axes = torch.linalg.eigh(covs)
        require(
            abs(weights.sum().item() - 1) < 1e-6 and bool((weights > 0).all()),
            "the weights must be above 0 and sum to 1",
        )
        require(bool((variances > 0).all()), "every covariance must be positive definite")
        for name, value in dict(weights=weights, means=means, covs=covs, variances=variances, axes=axes).items():
            self.register_buffer(name, value, persistent=False)

    def _apply(self, fn, recurse=True):
        # moves with the module, stays float64 under .float(), .to(dtype) and precision plugins
        return super()._apply(lambda a: a.to(fn(a).device), recurse)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n draws (n, d) and the component of each (n,)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[k] + torch.einsum("nij,nj->ni", self.axes[k], self.variances[k].sqrt() * z), k

    def components(self, x: Tensor, alpha=1.0, sigma=0.0) -> tuple[Tensor, Tensor]:
        """For x (B, d) at the level (alpha, sigma): `log w_k N(x; ...)` (B, K), and each component's own score (B, K, d)."""
        alpha, sigma = (
            torch.as_tensor(a, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for a in (alpha, sigma)
        )
        z = torch.einsum("kji,bkj->bki", self.axes, x.double()[:, None] - alpha * self.means)
        var = alpha**2 * self.variances + sigma**2
        log_n = -0.5 * (z**2 / var + var.log() + math.log(2 * math.pi)).sum(-1)
        return self.weights.log() + log_n, -torch.einsum("kij,bkj->bki", self.axes, z / var)

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0, label: Tensor | None = None) -> Tensor:
        """log density in nats (B,) at the level (alpha, sigma), each () or (B,); of component label (B,) alone, -1: of all."""
        log_p = self.components(x, alpha, sigma)[0]
        return torch.logsumexp(log_p if label is None else self._only(log_p - self.weights.log(), log_p, label), dim=1)

    def score(self, x: Tensor, alpha=1.0, sigma=0.0, label: Tensor | None = None) -> Tensor:
        """grad log p(x) (B, d) at the level (alpha, sigma): the components' scores weighted by their posterior probability.

        label (B,): of that component alone; -1: of all.
        """
        log_p, scores = self.components(x, alpha, sigma)
        weights = torch.softmax(log_p if label is None else self._only(log_p, log_p, label), dim=1)
        return torch.einsum("bk,bkd->bd", weights, scores)

    def log_posterior(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """`log p(k | x_t)` of the components (B, K), in nats, at the level (alpha, sigma)."""
        return torch.log_softmax(self.components(x, alpha, sigma)[0], dim=1)

    def _only(self, one: Tensor, every: Tensor, label: Tensor) -> Tensor:
        """`one` (B, K) at the component that label (B,) names, -inf at the others; `every` where it names none."""
        k = len(self.weights)
        require(
            label.shape == (len(one),) and bool(((label >= -1) & (label < k)).all()),
            f"labels must be ({len(one)},) from -1 (none) to {k - 1}",
        )
        named = torch.arange(k, device=one.device) == label[:, None]
        return torch.where(label[:, None] < 0, every, torch.where(named, one, -torch.inf))


class Exact(Denoiser):
    """The ideal denoiser of a Gaussian mixture: F is the exact score, `x0_hat = (xt + sigma^2 F) / alpha` (Tweedie).

    Keyword label (B,): the component that an item is drawn from, whose own denoiser it then is; -1 or none: of the whole
    mixture.
    """

    def __init__(self, sde: SDE, mixture: GaussianMixture):
        super().__init__(sde)
        self.mixture = mixture

    def parts(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        score = self.mixture.score(xt.flatten(1), alpha, sigma, **cond)
        return 1 / alpha, sigma**2 / alpha, score.to(xt.dtype).view_as(xt)

    def score(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        return self.evaluate(xt, t, **cond)[2]  # itself, which holds without noise too, and loses nothing near none

    def log_prob(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """log p_t(xt) in nats, (B,), given the label."""
        return self.mixture.log_prob(xt.flatten(1), self.sde.alpha(t), self.sde.sigma(t), **cond)
