"""The energy distance of samples and data: no kernel, no bandwidth, zero for equal laws alone."""

import torch
from torch import Tensor

from diffcli.metrics.two_sample import checked, mean_between, mean_within

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
    parts = [mean_within(a, _distances) * ((len(a) - 1) / len(a) if biased else 1) for a in (x, y)]
    return 2 * mean_between(x, y, _distances) - sum(parts)


def _distances(rows: Tensor, y: Tensor) -> Tensor:
    direct = y.shape[1] <= DIRECT
    mode = "donot_use_mm_for_euclid_dist" if direct else "use_mm_for_euclid_dist"
    return torch.cdist(rows, y, compute_mode=mode)
