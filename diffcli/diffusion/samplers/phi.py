"""The integrals behind exponential integrators."""

import math
from functools import cache

import torch
from torch import Tensor


def phi(k: int, z: float) -> float:
    """`phi_k(z) = ∫_0^1 e^{(1-u) z} u^{k-1} / (k-1)! du` for k >= 1, `phi_0 = e^z`; to round-off at every z.

    `phi_{k+1}(z) = (phi_k(z) - 1/k!) / z` where that loses nothing, else the series `sum_n z^n / (n+k)!`.
    Hochbruck & Ostermann 2010, sec. 2.1.
    """
    if abs(z) < 1 + k:
        term, total, n = 1 / math.factorial(k), 0.0, 0
        while abs(term) > 1e-18 * abs(total):
            total += term
            n += 1
            term *= z / (n + k)
        return total
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value


@cache
def _nodes(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on [0, 1], by the eigenvalues of the Jacobi matrix.  Golub & Welsch 1969."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    x, v = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (x + 1) / 2, v[0] ** 2


def gauss_legendre(width: float) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights that integrate exponentials over so wide an interval of lam to round-off."""
    return _nodes(16 + 8 * math.ceil(abs(width)))


def nodes_in_step(i: int, points: int, lam: list[float]) -> list[float]:
    """lam[i], lam[i - 1], ... as u, which is 0 at lam[i] and 1 at lam[i + 1]."""
    return [(lam[i - j] - lam[i]) / (lam[i + 1] - lam[i]) for j in range(points)]


def lagrange_weights(nodes: list[float], moments: list[float]) -> list[float]:
    """The w_j with `sum_j w_j q(nodes_j) = ∫ q` for every polynomial q of degree below len(nodes), of `moments_m = ∫ u^m`."""
    u = torch.tensor(nodes, dtype=torch.float64)
    powers = u ** torch.arange(len(nodes), dtype=torch.float64)[:, None]
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
