"""Kernel density estimates with a Gaussian kernel, noised to any level."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require

CHUNK = 2**22  # distances at once
LEAST = -200.0  # log of a weight, relative to the largest, that counts: what underflows would slow each product by far


def scott(items: Tensor) -> float:
    """Scott's rule `h = s N^(-1/(d+4))` for items (N, *S), s^2 their mean variance a dimension.  Scott 1992.

    Raises ValueError where the items do not vary.
    """
    x = items.double().flatten(1)
    s = x.var(0, correction=0).mean().sqrt().item()
    require(s > 0, "the data do not vary, so bandwidth=auto has nothing to measure")
    return s * len(x) ** (-1 / (x.shape[1] + 4))


class GaussianKDE:
    """`q(x) = 1/N sum_m N(x; alpha c_m, alpha^2 h^2 + sigma^2)`: the KDE of the items c (N, d) noised to (alpha, sigma).

    For x (B, d), alpha and sigma () or (B,).  In float64, in chunks of rows.
    """

    def __init__(self, items: Tensor, bandwidth: float = 0.0):
        self.items, self.bandwidth = items.double(), bandwidth
        self.middle = self.items.mean(0)
        self.centred = self.items - self.middle  # so that the expanded square cancels least
        self.norms = self.centred.square().sum(1)

    def to(self, device: torch.device) -> "GaussianKDE":
        """Itself, on this device."""
        for name in ("items", "middle", "centred", "norms"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Of the kernel at a level."""
        return (alpha * self.bandwidth) ** 2 + sigma**2

    def _chunks(self, x: Tensor, alpha: Tensor, sigma: Tensor):
        """For each chunk of rows `log N(x; alpha c_m, ...)` but for the constant (b, N)."""
        alpha, sigma = (a.to(x.device).expand(len(x))[:, None] for a in (alpha, sigma))
        rows = max(1, CHUNK // len(self.items))
        for y, a, s in zip(*(v.split(rows) for v in (x.double(), alpha, sigma)), strict=True):
            z = y - a * self.middle
            square = z.square().sum(1, keepdim=True) - 2 * a * (z @ self.centred.T) + a**2 * self.norms
            log_w = -0.5 * square / self.variance(a, s)
            yield log_w.masked_fill(log_w < log_w.amax(1, keepdim=True) + LEAST, -math.inf)

    def mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`sum_m pi_m(x) c_m` (B, d), weighted by the posterior probability of each item."""
        return (
            torch.cat([torch.softmax(log_w, 1) @ self.centred for log_w in self._chunks(x, alpha, sigma)]) + self.middle
        )

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`grad log q(x) = (alpha mean(x) - x) / (alpha^2 h^2 + sigma^2)` (B, d)."""
        column = [a.to(x.device).reshape(-1, 1) for a in (alpha, sigma)]
        return (column[0] * self.mean(x, alpha, sigma) - x.double()) / self.variance(*column)

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log q(x) in nats (B,)."""
        found = torch.cat([torch.logsumexp(log_w, 1) for log_w in self._chunks(x, alpha, sigma)])
        return (
            found - math.log(len(self.items)) - 0.5 * x.shape[1] * torch.log(2 * math.pi * self.variance(alpha, sigma))
        )
