"""What every density that moves with its SDE satisfies, as residuals: of trained models, exact ones, and anything else."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.sde import SDE


class Residual(NamedTuple):
    """`value`: left side minus right side of an equation, (B,) or (B, *S); `size`: the magnitudes of its terms, added up."""

    value: Tensor
    size: Tensor

    @property
    def relative(self) -> Tensor:
        """||value|| / ||size|| of each item, (B,): 0 where the equation holds, 1 where a term stands alone."""
        value, size = (a.detach().reshape(len(a), -1).norm(dim=1) for a in self)
        return value / size


def divergence(u: Tensor, x: Tensor, create_graph: bool = True) -> Tensor:
    """`sum_i du_i/dx_i` (B,) by d vector-Jacobian products; u (B, *S) was computed from x (B, *S), item by item."""
    d, total = x[0].numel(), 0
    for i in range(d):
        more = create_graph or i + 1 < d
        (row,) = torch.autograd.grad(u.flatten(1)[:, i].sum(), x, retain_graph=more, create_graph=create_graph)
        total = total + row.flatten(1)[:, i]
    return total


def fokker_planck(log_prob, sde: SDE, x: Tensor, t: Tensor) -> Residual:
    """`dp/dt = -div(f x p) + 1/2 g^2 Laplacian p`, divided by p, for `log_prob(x, t) -> (B,)` at x (B, *S), t (B,).

    An unnormalised density satisfies it where its normaliser does not move.  Song et al. 2021, app. D.1, arXiv:2011.13456.
    """
    x, t = _leaves(x, t)
    log_p = log_prob(x, t)
    p = torch.exp(log_p - log_p.detach())  # of the density in units of its own value here: nothing underflows
    dp_dt, dp = torch.autograd.grad(p.sum(), (t, x), create_graph=True)
    growth = x[0].numel() * sde.f(t)
    transport = sde.f(t) * (x * dp).flatten(1).sum(1)
    spread = 0.5 * sde.g2(t) * divergence(dp, x)
    return _residual(dp_dt, -growth, -transport, spread)


def continuity(log_prob, velocity, x: Tensor, t: Tensor) -> Residual:
    """`d log p/dt = -div v - v . grad log p`, for `log_prob(x, t) -> (B,)` and the field `velocity(x, t) -> (B, *S)`.

    Chen et al. 2018, app. A.2, arXiv:1806.07366; Song et al. 2021, app. D.1, arXiv:2011.13456.
    """
    x, t = _leaves(x, t)
    dlog_p_dt, score = torch.autograd.grad(log_prob(x, t).sum(), (t, x))
    v = velocity(x, t)
    return _residual(dlog_p_dt, -divergence(v, x), -(v * score).flatten(1).sum(1))


def score_fpe(score, sde: SDE, x: Tensor, t: Tensor) -> Residual:
    """`ds/dt = grad( 1/2 g^2 div s + 1/2 g^2 ||s||^2 - f x . s - d f )`, for `score(x, t) -> (B, *S)` alone.

    Lai et al. 2023, eq. 7, arXiv:2210.04296.
    """
    x, t = _leaves(x, t)
    s = score(x, t)
    # the derivative of s in t as that of a vector-Jacobian product in its (any) vector: two passes for any d
    w = torch.zeros_like(s, requires_grad=True)
    (along,) = torch.autograd.grad(s, t, w, create_graph=True)
    (ds_dt,) = torch.autograd.grad(along, w, torch.ones_like(along), retain_graph=True)
    half_g2 = 0.5 * sde.g2(t)
    terms = (
        half_g2 * divergence(s, x),
        half_g2 * s.square().flatten(1).sum(1),
        -sde.f(t) * (x * s).flatten(1).sum(1),
    )
    return _residual(ds_dt, *(_slope(a, x) for a in terms))


def asymmetry(score, x: Tensor, t: Tensor) -> Tensor:
    """`||J - J^T|| / ||J + J^T||` (B,) of `J = ds/dx`: 0 for the gradient of a density, and only then is s one."""
    x, t = _leaves(x, t)
    s = score(x, t).flatten(1)
    rows = [torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0].flatten(1) for i in range(s.shape[1])]
    jacobian = torch.stack(rows, 1)
    return (jacobian - jacobian.mT).flatten(1).norm(dim=1) / (jacobian + jacobian.mT).flatten(1).norm(dim=1)


def _leaves(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return x.detach().requires_grad_(), t.detach().expand(x.shape[0]).clone().requires_grad_()


def _slope(a: Tensor, x: Tensor) -> Tensor:
    """da/dx, 0 where a does not depend on x, as the divergence of a linear score."""
    if not a.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(a.sum(), x, retain_graph=True, materialize_grads=True)[0]


def _residual(left: Tensor, *right: Tensor) -> Residual:
    terms = [a.detach() for a in (left, *right)]
    return Residual(terms[0] - sum(terms[1:]), sum(a.abs() for a in terms))
