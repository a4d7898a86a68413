"""Two-sample distances that need no feature network."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.errors import NumericalError, UsageError

BLOCK = 2**20  # entries of a kernel matrix held at once, 8 MB: blocks beyond the cache take longer
BANDWIDTH_ITEMS = 2000  # the median distance of that many items is within 2 % (one sd, normal data) of that of all


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 128, generator: torch.Generator | None = None
) -> Tensor:
    """Give `sqrt(mean over unit theta of W2^2(theta.x, theta.y))`, in the units of x, float64 `()`.

    x `(n, *S)`, y `(m, *S)`; W2 of each projection is exact, the L2 distance of the two quantile functions.
    generator: of the directions; None takes those of seed 0.  Raises UsageError for shapes that differ or no items,
    NumericalError for a non-finite item (Bonneel et al. 2015).
    """
    x, y = checked(x, y, least=1)
    if projections < 1:
        raise UsageError(f"projections={projections} is below 1")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    theta = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64).to(x.device)
    theta = theta / theta.norm(dim=0)
    # Quantile functions are steps at i/n and j/m; in units of 1/(nm) all steps are integers.
    n, m = len(x), len(y)
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    widths = steps.diff(prepend=steps.new_zeros(1)).double() / (n * m)
    i, j = (steps - 1) // m, (steps - 1) // n
    total = x.new_zeros(())
    for part in theta.split(16, dim=1):
        gap = (x @ part).sort(dim=0).values[i] - (y @ part).sort(dim=0).values[j]
        total += (widths @ gap**2).sum()
    return (total / projections).sqrt()


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> Tensor:
    """Estimate `MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)` without bias, so it may be negative; float64 `()`.

    x `(n, *S)`, y `(m, *S)`; `k(a, b) = sum_c exp(-|a - b|^2 / (2 (c bandwidth)^2))` for c = ¼, ½, 1, 2, 4.
    bandwidth: in the units of x, of y's median distance if None.  Raises UsageError for shapes that differ, fewer than
    2 items or a bandwidth of 0, NumericalError for a non-finite item (Gretton et al. 2012, eq. 3).
    """
    x, y = checked(x, y, least=2)
    bandwidth = median_distance(y) if bandwidth is None else bandwidth
    if not bandwidth > 0:
        raise UsageError(f"a kernel needs a bandwidth above 0, not {bandwidth}")
    # |a|^2 + |b|^2 - 2 ab loses fewer digits near the origin.
    centre = y.mean(dim=0)
    x, y = (x - centre) / bandwidth, (y - centre) / bandwidth
    return mean_within(x, _kernel) + mean_within(y, _kernel) - 2 * mean_between(x, y, _kernel)


def median_distance(y: Tensor) -> float:
    """Give the median distance between two different points of y `(m, *S)`, of its first 2,000 items.

    Raises UsageError where all items are equal, which leaves no distance.
    """
    y = y[:BANDWIDTH_ITEMS].flatten(1).double()
    distances = torch.pdist(y)
    # Copies of an item say nothing about the scale, and where most are copies the median would be 0.
    distances = distances[distances > 0]
    if len(distances) == 0:
        raise UsageError(f"the {len(y)} items are all equal, which leaves no scale to compare on")
    return distances.median().item()


def mean_between(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Average a kernel over all pairs of x `(n, d)` and y `(m, d)`, in blocks; kernel: rows and y to a matrix."""
    blocks = x.split(max(1, BLOCK // len(y)))
    return torch.stack([kernel(rows, y).sum() for rows in blocks]).sum() / (len(x) * len(y))


def mean_within(x: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Average a kernel over the pairs of different items of x `(n, d)`, in blocks, each computed once."""
    total, start = x.new_zeros(()), 0
    for rows in x.split(max(1, BLOCK // len(x))):
        total += kernel(rows, x[start:]).triu_(1).sum()
        start += len(rows)
    return 2 * total / (len(x) * (len(x) - 1))


def _kernel(rows: Tensor, y: Tensor) -> Tensor:
    square = ((rows**2).sum(1)[:, None] + (y**2).sum(1)).addmm_(rows, y.T, alpha=-2)
    # One exponential serves five bandwidths: halving the bandwidth is the fourth power.
    k = square.div_(-2 * 4**2).exp_()
    total = k.clone()
    for _ in range(4):
        k.square_().square_()
        total += k
    return total


def checked(x: Tensor, y: Tensor, least: int) -> list[Tensor]:
    """Give samples x and data y flat, `(n, d)` and `(m, d)` float64.

    Raises UsageError for items of different shapes or fewer than `least`, NumericalError for a non-finite one.
    """
    if x.shape[1:] != y.shape[1:]:
        raise UsageError(f"items of shape {tuple(x.shape[1:])} cannot be compared with {tuple(y.shape[1:])}")
    flat = []
    for name, a in {"samples": x, "data": y}.items():
        if len(a) < least:
            raise UsageError(f"{len(a)} items are too few to compare; at least {least} are needed")
        a = a.reshape(len(a), -1).double()
        bad = ~a.isfinite().all(dim=1)
        if bad.any():
            raise NumericalError(f"item {int(bad.nonzero()[0])} of the {name} is not finite")
        flat.append(a)
    return flat
