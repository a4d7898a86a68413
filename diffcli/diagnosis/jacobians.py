"""The Jacobian of x0_hat at noised items, by probes: what path dependence and calibration are read from; computed once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.diagnosis.levels import Levels
from diffcli.diagnosis.probes import products
from diffcli.diagnosis.subject import Subject


@dataclass
class Jacobians:
    """Of each level and item, (K, n) float64.  With `D = dx0_hat/dx` and `J = (alpha D - I)/sigma^2` that of the score:
    `antisymmetric = ||J - J^T||^2`, `symmetric = ||J + J^T||^2`, both times sigma^4; `learned = ||alpha (D + D^T)||^2`;
    `trace` of D; `square = ||x0 - x0_hat||^2`.
    """

    levels: Levels
    antisymmetric: Tensor
    symmetric: Tensor
    learned: Tensor
    trace: Tensor
    square: Tensor


def jacobians(subject: Subject) -> Jacobians:
    """At the few levels and items."""
    if "jacobians" not in subject.kept:
        subject.kept["jacobians"] = _measure(subject)
    return subject.kept["jacobians"]


def _measure(subject: Subject) -> Jacobians:
    levels, n, sde = subject.few_levels, subject.few, subject.sde
    found = [torch.empty(len(levels), n, dtype=torch.float64) for _ in range(5)]
    for k, t in enumerate(levels.t):
        alpha = sde.alpha(t).item()
        eps, probes = (
            subject.normal(subject.x0[:n].shape, "jacobians", k),
            subject.directions(n, "jacobians", "probes", k),
        )
        for part in subject.batches(n, True):
            clean, e = subject.x0[part].double(), subject.to(probes[:, part])
            xt = subject.to(sde.perturb(clean, t, eps[part]))
            forth, back = (a.double() for a in products(subject.denoiser, xt, t, e))
            e = e.double()
            with torch.no_grad():
                mean = subject.denoiser(xt, t.expand(len(xt))).double()
            values = (
                _norm(alpha * (forth - back)),
                _norm(alpha * (forth + back) - 2 * e),
                _norm(alpha * (forth + back)),
                (e * back).flatten(2).sum(2).mean(0),
                (clean.to(mean) - mean).flatten(1).square().sum(1),
            )
            for column, value in zip(found, values, strict=True):
                column[k, part] = value.cpu()
    return Jacobians(levels, *found)


def _norm(a: Tensor) -> Tensor:
    """The mean square over probes, (B,)."""
    return a.flatten(2).square().sum(2).mean(0)


def loops(subject: Subject, t: Tensor, purpose: str, n: int) -> tuple[Tensor, Tensor]:
    """For n triangles whose corners are one item with three noises: the integral of the score around each, and the mean square
    of the integral along a side, in nats (n,).
    """
    sde, gauss = subject.sde, gauss_legendre(16 if subject.small else 8)
    corners = []
    for c in range(3):
        eps = subject.normal(subject.x0[:n].shape, purpose, "corner", c)
        corners.append(sde.perturb(subject.x0[:n].double(), t, eps))
    around, sides = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for part in subject.batches(n):
        for a, b in ((0, 1), (1, 2), (2, 0)):
            value = line_integral(subject, corners[a][part], corners[b][part], t, gauss)
            around[part] += value
            sides[part] += value.square() / 3
    return around, sides


@torch.no_grad()
def line_integral(
    subject: Subject, start: Tensor, end: Tensor, t: Tensor, gauss: tuple[list[float], list[float]]
) -> Tensor:
    """`int_0^1 s(start + u (end - start)) . (end - start) du` (B,) in nats, by the nodes and weights of gauss."""
    total = torch.zeros(len(start), dtype=torch.float64)
    for u, w in zip(*gauss, strict=True):
        x = subject.to(start + u * (end - start))
        score = subject.denoiser.score(x, t.expand(len(x))).double().cpu()
        total += w * (score * (end - start)).flatten(1).sum(1)
    return total


def gauss_legendre(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]: exact for polynomials of degree 2 nodes - 1.  Golub & Welsch 1969."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    beta = k / torch.sqrt(4 * k**2 - 1)
    x, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return ((x + 1) / 2).tolist(), vectors[0].square().tolist()
