"""Kernel distance of two sets of features: no Gaussian is assumed, and no bias falls with the number of items."""

import torch
from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.two_sample import checked, mean_between, mean_within
from diffcli.randomness import key

SUBSETS, SUBSET = 100, 1000


def kid(x: Tensor, y: Tensor, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0) -> dict[str, float]:
    """`MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)`, `k(a, b) = (a.b/D + 1)^3`, without bias: its mean for equal laws is 0.

    x (n, D) of data, y (m, D) of samples.  mean and sd over `subsets` random pairs of subsets of min(size, n, m) items each,
    drawn without replacement by seed, in float64; the sd is that of one subset (as numpy's, of the population; nan for one subset).
    Bińkowski et al. 2018, §4, arXiv:1801.01401.  Raises UsageError for fewer than 2 items, NumericalError for features that
    are not finite.
    """
    y, x = checked(y, x, least=2)
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
    return (mean_within(x, _kernel) + mean_within(y, _kernel) - 2 * mean_between(x, y, _kernel)).item()


def _kernel(rows: Tensor, y: Tensor) -> Tensor:
    return (rows @ y.T).div_(y.shape[1]).add_(1).pow_(3)
