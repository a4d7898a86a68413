"""Products with the Jacobian of a denoiser, and the terms of the score Fokker-Planck equation, by a few passes each."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.diffusion.sde import SDE


def products(fn, x: Tensor, t: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """`J e` and `J^T e` (K, B, *S) of `J = d fn(x, t)/dx` for probes e (K, B, *S).

    J e is the derivative of a vector-Jacobian product in its vector, so that any network that can be differentiated twice
    will do: forward-mode is not asked for.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        x = x.detach().requires_grad_()
        y = fn(x, t.detach().expand(len(x)))
        w = torch.zeros_like(y, requires_grad=True)
        (back,) = torch.autograd.grad(y, x, w, create_graph=True)
        forth = [torch.autograd.grad(back, w, e, retain_graph=True)[0] for e in probes]
        last = len(probes) - 1
        return torch.stack(forth), torch.stack(
            [torch.autograd.grad(y, x, e, retain_graph=i < last)[0] for i, e in enumerate(probes)]
        )


def score_fpe_terms(score, sde: SDE, x: Tensor, t: Tensor, probes: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The terms of `ds/dt = grad(1/2 g^2 ||s||^2) - grad(f x . s) + grad(1/2 g^2 div s)`: the left side (B, *S), the first two
    of the right, and the last once for each probe e (K, B, *S), as `grad(1/2 g^2 e^T J e)`, whose mean over probes with
    `E e e^T = I` it is.  Lai et al. 2023, eq. 7, arXiv:2210.04296; Hutchinson 1990.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x, t = x.detach().requires_grad_(), t.detach().expand(len(x)).clone().requires_grad_()
        s = score(x, t)
        w = torch.zeros_like(s, requires_grad=True)
        (along,) = torch.autograd.grad(s, t, w, create_graph=True)
        (ds_dt,) = torch.autograd.grad(along, w, torch.ones_like(along), retain_graph=True)
        half_g2, f = 0.5 * sde.g2(t.detach()), sde.f(t.detach())
        others = [
            _gradient((half_g2 * s.square().flatten(1).sum(1)).sum(), x),
            _gradient(-(f * (x * s).flatten(1).sum(1)).sum(), x),
        ]
        spread = []
        for e in probes:
            (row,) = torch.autograd.grad(s, x, e, create_graph=True)
            spread.append(_gradient((half_g2 * (row * e).flatten(1).sum(1)).sum(), x))
        return ds_dt, others, torch.stack(spread)


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """0 where the value does not depend on x, as the divergence of a linear score."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)[0]


def square_of_mean(a: Tensor, exact: bool) -> Tensor:
    """`||E a||^2` (B,) from independent draws a (K, B, *S), without the bias of their noise: over pairs of different draws.

    exact: the draws are all there are, and their mean is no estimate.
    """
    a = a.double().flatten(2)
    total = a.sum(0).square().sum(1)
    if exact or len(a) == 1:
        return total / len(a) ** 2
    return (total - a.square().sum((0, 2))) / (len(a) * (len(a) - 1))
