"""Fréchet distance between the Gaussians of two sets of features."""

import torch
from torch import Tensor

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.features.statistics import Moments


def frechet(a: Moments, b: Moments) -> float:
    """`|m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^½ S_b S_a^½)^½`, the squared 2-Wasserstein distance of two Gaussians.

    By two symmetric eigenproblems in float64, which have no complex or negative roots to drop; 0 where a = b up to round-off.
    On Inception features it is the FID (Heusel et al. 2017, arXiv:1706.08500).
    Raises UsageError for dimensions that differ or fewer than 2 items, NumericalError for moments that are not finite.
    """
    if a.dim != b.dim:
        raise UsageError(f"features of {a.dim} and of {b.dim} dimensions are not of one network")
    for m in (a, b):  # first: MKL's eigensolver can end the process on a nan
        if not (m.mean.isfinite().all() and m.scatter.isfinite().all()):
            raise NumericalError("the moments of the features are not finite")
    root = square_root(a.cov)
    middle = root @ b.cov @ root
    cross = _roots(torch.linalg.eigvalsh((middle + middle.T) / 2)).sum()
    return ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross).item()


def square_root(s: Tensor) -> Tensor:
    """The symmetric root of a covariance (D, D)."""
    values, vectors = torch.linalg.eigh((s + s.T) / 2)
    return (vectors * _roots(values)) @ vectors.T


def _roots(values: Tensor) -> Tensor:
    """√ of ascending eigenvalues; what is round-off beside the largest is 0, where its root, 1e-8 of it, would be no round-off."""
    least = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return values.masked_fill(values < least.clamp(min=0), 0).clamp(min=0).sqrt()
