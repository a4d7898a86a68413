"""Sliced score matching: the trace by random projections."""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.loss.noised import Implicit
from diffcli.diffusion.numeric import require


def rademacher(draw, shape, dtype) -> Tensor:
    """Signs."""
    return torch.where(draw.uniform("projection", shape) < 0.5, -1.0, 1.0).to(dtype)


def gaussian(draw, shape, dtype) -> Tensor:
    """N(0, I)."""
    return draw.normal("projection", shape, dtype)


def sphere(draw, shape, dtype) -> Tensor:
    """Uniform on the sphere of radius sqrt(d)."""
    v = draw.normal("projection", shape, dtype)
    norm = v.flatten(2).norm(dim=2)
    return v * (v[0, 0].numel() ** 0.5 / norm).view(*norm.shape, *[1] * (v.ndim - 2))


PROJECTIONS = {"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere}  # v (K, B, *S) with E v v^T = I


class Sliced(Implicit):
    """`w [v . (grad_x s_theta) v + second]`, the mean over `probes` projections v with `E v v^T = I`.

    projection: rademacher, gaussian, or sphere (of radius sqrt(d)).  Raises ValueError for another one, and for probes < 1.
    """

    def __init__(self, projection: Literal["rademacher", "gaussian", "sphere"] = "rademacher", probes: int = 1):
        super().__init__()
        require(projection in PROJECTIONS, f"projection must be one of {', '.join(PROJECTIONS)}, got {projection}")
        require(probes >= 1, f"probes must be at least 1, got {probes}")
        self.projection, self.probes = PROJECTIONS[projection], probes

    @abstractmethod
    def second(self, score: Tensor, v: Tensor) -> Tensor:
        """The term without derivatives, (B,)."""

    def bracket(self, score, x, draw, graph):
        total = score.new_zeros(x.shape[0])
        for v in self.projection(draw, (self.probes, *x.shape), x.dtype):
            (found,) = torch.autograd.grad(score, x, v.to(score), create_graph=graph, retain_graph=True)
            total = total + inner(found, v) + self.second(score, v)
        return total / self.probes


class SSM(Sliced):
    """`w [v . (grad_x s_theta) v + 1/2 (v . s_theta)^2]`.  Song et al. 2019, sec. 3, arXiv:1905.07088."""

    def second(self, score, v):
        return 0.5 * inner(score, v) ** 2


class SSMVR(Sliced):
    """`w [v . (grad_x s_theta) v + 1/2 ||s_theta||^2]`: SSM whose second term has its known expectation.

    Song et al. 2019, sec. 3, arXiv:1905.07088.
    """

    def second(self, score, v):
        return 0.5 * inner(score, score)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """`a . b` item by item, (B,)."""
    return (a * b).flatten(1).sum(1)
