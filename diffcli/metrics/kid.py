"""Kernel distance of two sets of features: no Gaussian is assumed, and no bias falls with the number of items."""

import torch
from torch import Tensor

from diffcli.errors import NumericalError, UsageError
from diffcli.randomness import key

SUBSETS, SUBSET = 100, 1000
BLOCK = 2**20  # entries of a kernel matrix held at once, 8 MB


def kid(x: Tensor, y: Tensor, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0) -> dict[str, float]:
    """`MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)`, `k(a, b) = (a.b/D + 1)^3`, without bias: its mean for equal laws is 0.

    x (n, D), y (m, D).  mean and sd over `subsets` random pairs of subsets of min(size, n, m) items each, drawn without
    replacement by seed, in float64; the sd is that of one subset (as numpy's, of the population; nan for one subset).
    Bińkowski et al. 2018, §4, arXiv:1801.01401.  Raises UsageError for fewer than 2 items, NumericalError for features that
    are not finite.
    """
    x, y = checked(x, y, least=2)
    if subsets < 1 or size < 2:
        raise UsageError(f"subsets={subsets} of {size} items are too few: 1 of 2 at least")
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):
        subsets = 1  # there is one such pair only
    generator = torch.Generator().manual_seed(key("kid", seed) % 2**63)
    found = []
    for _ in range(subsets):
        a = x[torch.randperm(len(x), generator=generator)[:size]]
        b = y[torch.randperm(len(y), generator=generator)[:size]]
        found.append(mmd2(a, b))
    values = torch.tensor(found, dtype=torch.float64)
    sd = values.std(correction=0).item() if subsets > 1 else float("nan")
    return {"mean": values.mean().item(), "sd": sd, "subsets": subsets, "size": size}


def mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate on all pairs of x (n, D) and y (m, D): `Σ_{i≠j} k(x_i, x_j)/(n(n-1)) + … - 2 Σ k(x_i, y_j)/(nm)`."""
    return _within(x) + _within(y) - 2 * _sum(x, y) / (len(x) * len(y))


def _sum(x: Tensor, y: Tensor) -> float:
    blocks = x.split(max(1, BLOCK // len(y)))
    return sum(((rows @ y.T) / x.shape[1] + 1).pow_(3).sum().item() for rows in blocks)


def _within(x: Tensor) -> float:
    own = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (_sum(x, x) - own) / (len(x) * (len(x) - 1))


def checked(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Two sets of features (n, D) and (m, D) in float64.  Raises UsageError and NumericalError with a sentence."""
    if x.shape[1:] != y.shape[1:]:
        raise UsageError(f"features of {x.shape[1]} and of {y.shape[1]} dimensions are not of one network")
    for a in (x, y):
        if len(a) < least:
            raise UsageError(f"{len(a)} items are too few; at least {least} are needed")
        if not a.isfinite().all():
            raise NumericalError("some of the features are not finite")
    return x.double(), y.double()
