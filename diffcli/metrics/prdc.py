"""Fidelity and variety apart: precision, recall, density and coverage, by balls around the features of each set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.two_sample import checked

BLOCK = 2**19  # distances held at once, 4 MB: blocks beyond the cache take longer


@dataclass(frozen=True)
class Prdc:
    """precision, recall and coverage in [0, 1], density from 0 (its mean is 1 for two sets of one law)."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5, balls: list[Tensor] | None = None) -> Prdc:
    """With B_k(x) the ball around x through its k-th nearest other item of the same set, for real (N, D) and fake (M, D):

    `precision = mean_fake [in some B_k(real)]`, `recall = mean_real [in some B_k(fake)]` (Kynkäänniemi et al. 2019,
    arXiv:1904.06991, k = 3); `density = Σ_fake #{B_k(real) around it} / (k M)`, `coverage = mean_real [B_k(real) holds a fake]`
    (Naeem et al. 2020, arXiv:2002.09797, k = 5: k_density).  A ball holds its rim.

    balls: `balls_of(real, k, k_density)` where they are known: a third of the work.

    float64, in blocks: memory of BLOCK distances.  Raises UsageError unless both sets have more than k items, NumericalError
    for features that are not finite.
    """
    if min(k, k_density) < 1:
        raise UsageError(f"neighbours={min(k, k_density)} is below 1")
    fake, real = checked(fake, real, least=max(k, k_density) + 1)
    centre = real.mean(0)  # the expansion of the square then cancels least
    real, fake = real - centre, fake - centre
    ball, ball_density = balls or radii(real, k, k_density)
    (ball_fake,) = radii(fake, k)
    inside = torch.zeros(len(fake), dtype=torch.bool)
    around = torch.zeros(len(fake), dtype=torch.int64)
    recalled, covered, sizes = [], [], fake.square().sum(1)
    for at, rows in _blocks(real, len(fake)):
        d2 = squares(rows, fake, sizes)
        inside |= (d2 <= ball[at, None]).any(0)
        within = d2 <= ball_density[at, None]
        around += within.sum(0)
        covered.append(within.any(1))
        recalled.append((d2 <= ball_fake).any(1))
    return Prdc(
        precision=inside.double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=around.double().mean().item() / k_density,
        coverage=torch.cat(covered).double().mean().item(),
    )


def balls_of(real: Tensor, k: int, k_density: int) -> list[Tensor]:
    """The squared radii of the balls around real features, in `prdc`'s coordinates."""
    real = checked(real, real, least=max(k, k_density) + 1)[0]
    return radii(real - real.mean(0), k, k_density)


def radii(x: Tensor, *ks: int) -> list[Tensor]:
    """The squared distance of each item of x (N, D) to its k-th nearest other one, (N,) for each k."""
    found: list[list[Tensor]] = [[] for _ in ks]
    sizes = x.square().sum(1)
    for at, rows in _blocks(x, len(x)):
        d2 = squares(rows, x, sizes)
        d2[torch.arange(len(rows)), torch.arange(len(x))[at]] = torch.inf  # not to itself
        nearest = d2.topk(max(ks), dim=1, largest=False).values
        for parts, k in zip(found, ks, strict=True):
            parts.append(nearest[:, k - 1])
    return [torch.cat(parts) for parts in found]


def squares(x: Tensor, y: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Squared distances (n, m); what is round-off beside the norms is 0, so that copies are at 0.  sizes: |y|^2 (m,)."""
    own, sizes = x.square().sum(1), y.square().sum(1) if sizes is None else sizes
    d2 = torch.addmm(sizes, x, y.T, alpha=-2).add_(own[:, None])
    # a row's largest norms first: so few are that near that a matrix of norms need not be made
    row, column = (d2 < 1e-13 * (own + sizes.max())[:, None]).nonzero(as_tuple=True)
    near = d2[row, column] < 1e-13 * (own[row] + sizes[column])
    d2[row[near], column[near]] = 0
    return d2


def _blocks(x: Tensor, columns: int):
    size = max(1, BLOCK // columns)
    for begin in range(0, len(x), size):
        at = slice(begin, min(begin + size, len(x)))
        yield at, x[at]
