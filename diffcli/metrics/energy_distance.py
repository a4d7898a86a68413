"""The energy distance of samples and data: no kernel, no bandwidth, zero for equal laws alone."""

import torch
from torch import Tensor

from diffcli.metrics.two_sample import BLOCK, checked

DIRECT = 16  # coordinates up to which differences themselves are summed: faster there than a matrix product


def energy_distance(x: Tensor, y: Tensor, biased: bool = False) -> Tensor:
    """Estimate `2 E|X - Y| - E|X - X'| - E|Y - Y'|` in the units of x, float64 `()`; it is 0 for equal laws alone.

    x `(n, *S)`, y `(m, *S)`.  By default over pairs of different items, without bias, so it may be negative.
    biased=True averages over all pairs, an item with itself among them: never negative, 0 for equal sets, and its
    square root is what scipy.stats.energy_distance gives.  Memory does not grow with n m.
    Raises UsageError for shapes that differ or fewer than 2 items, NumericalError for a non-finite item
    (Székely and Rizzo 2013).
    """
    x, y = checked(x, y, least=2)
    # |a|^2 + |b|^2 - 2 ab loses fewer digits near the origin.
    centre = y.mean(dim=0)
    x, y = x - centre, y - centre
    n, m = len(x), len(y)
    same = (n * n, m * m) if biased else (n * (n - 1), m * (m - 1))
    return 2 * _between(x, y) / (n * m) - _within(x) / same[0] - _within(y) / same[1]


def _between(x: Tensor, y: Tensor) -> Tensor:
    """Sum the distances of all pairs of x and y."""
    return torch.stack([_distances(rows, y).sum() for rows in x.split(max(1, BLOCK // len(y)))]).sum()


def _within(x: Tensor) -> Tensor:
    """Sum the distances of all ordered pairs of items of x, each computed once."""
    total, start = x.new_zeros(()), 0
    for rows in x.split(max(1, BLOCK // len(x))):
        total += _distances(rows, x[start:]).triu_(1).sum()
        start += len(rows)
    return 2 * total


def _distances(rows: Tensor, y: Tensor) -> Tensor:
    direct = y.shape[1] <= DIRECT
    mode = "donot_use_mm_for_euclid_dist" if direct else "use_mm_for_euclid_dist"
    return torch.cdist(rows, y, compute_mode=mode)
