"""DPM-Solver by Taylor expansion: the derivatives of eps along the ODE's own path, by forward-mode differentiation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from diffcli.diffusion.numeric import combine, derivative, require
from diffcli.diffusion.samplers.base import FixedGrid, Plan
from diffcli.diffusion.samplers.phi import phi
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.watched import unwatched


@dataclass(frozen=True)
class TaylorPlan(Plan):
    """A plan with `d^k t/dlam^k` and `(d^k alpha/dlam^k) / alpha` for k = 0, 1, ..., step by step."""

    t_jet: list[list[float]]
    alpha_jet: list[list[float]]


class DPMTaylor(FixedGrid):
    """`x_s = (alpha_s/alpha_t) xt - sigma_s sum_{k < order} h^{k+1} phi_{k+1}(h) e_k`, `e_k = d^k eps(x_lam, lam)/dlam^k` at t.

    The total derivatives are those along the probability-flow ODE: `e_k` is the k-fold directional derivative of
    `s -> eps(x + s x' + s^2/2 x'' + ..., t(lam + s))`, and x^(k+1) follows from it, as `d(x/alpha)/dlam = -e^-lam eps`.
    An evaluation of the k-th derivative carries k nested tangents and takes about 2^k times as long as a plain one.
    Raises ValueError for an order outside 1 to 4, and in setup for a model that differentiates inside itself.
    Lu et al. 2022, prop. 3.1 and eq. 3.6, arXiv:2206.00927.
    """

    kind = "ode"
    needs = "a model that can be differentiated forward"

    def __init__(self, order: int = 2):
        require(1 <= order <= 4, f"order must lie between 1 and 4, got {order}")
        self.order = self.evaluations = order

    def setup(self, denoiser):
        inside = any(getattr(m, "double_backward", False) for m in denoiser.modules())
        require(
            self.order == 1 or not inside,
            "dpm_taylor differentiates the model forward, and a gradient inside it (energy, classifier, posterior) has no such"
            " derivative: sampler=dpm3, or sampler.order=1",
        )

    def plan(self, sde, times):
        t_jet = along_lam(sde, lambda t: t, times[:-1], self.order)
        alpha_jet = along_lam(sde, sde.alpha, times[:-1], self.order) / sde.alpha(times[:-1])[:, None]
        return TaylorPlan.at(sde, times, t_jet=t_jet.tolist(), alpha_jet=alpha_jet.tolist())

    def step(self, denoiser, xt, i, plan, history, noise):
        alpha_t, alpha_s, sigma_s = plan.alpha[i], plan.alpha[i + 1], plan.sigma[i + 1]
        h = plan.lam[i + 1] - plan.lam[i]
        e, inner = [denoiser.eps(xt, plan.t[i])], unwatched(denoiser)
        x_jet = [xt]
        with sdpa_kernel(SDPBackend.MATH), Elementary():
            for k in range(1, self.order):
                x_jet.append(state_derivative(k, xt, e, plan.sigma[i], plan.alpha_jet[i]))
                e.append(total_derivative(k, inner, x_jet, plan.t_jet[i]))
        terms = [(-sigma_s * h ** (k + 1) * phi(k + 1, h), e_k) for k, e_k in enumerate(e)]
        return combine((alpha_s / alpha_t, xt), *terms)


def along_lam(sde: SDE, fn, t: Tensor, count: int) -> Tensor:
    """`d^k fn/dlam^k` for k < count at the times t (n,), as (n, count): `d/dlam = (1/lam') d/dt`, again and again."""
    orders = [fn]
    for _ in range(count - 1):
        orders.append(lambda t, last=orders[-1]: derivative(last, t) / sde.dlam(t))
    return torch.stack([f(t) for f in orders], 1)


def state_derivative(k: int, x: Tensor, e: list[Tensor], sigma: float, alpha: list[float]) -> Tensor:
    """`x^(k) = sum_j C(k, j) alpha^(k-j) y^(j)` with `y = x/alpha`, `y^(j) = -e^-lam sum_i C(j-1, i) (-1)^(j-1-i) eps^(i)`."""
    terms = [(alpha[k], x)]
    for i, e_i in enumerate(e):
        signs = [
            math.comb(k, j) * alpha[k - j] * math.comb(j - 1, i) * (-1) ** (j - 1 - i) for j in range(i + 1, k + 1)
        ]
        terms.append((-sigma * sum(signs), e_i))
    return combine(*terms)


def total_derivative(k: int, denoiser, x: list[Tensor], t: list[float]) -> Tensor:
    """`d^k/ds^k eps(sum_j x_j s^j/j!, sum_j t_j s^j/j!)` at s = 0."""

    def eps(s):
        time = sum(c * s**j / math.factorial(j) for j, c in enumerate(t[: k + 1]))
        state = sum(c * (s**j / math.factorial(j)).to(c.dtype) for j, c in enumerate(x))
        return denoiser.eps(state, time)

    f = eps
    for _ in range(k):
        f = tangent(f)
    return f(torch.zeros((), dtype=torch.float64, device=x[0].device))


def tangent(fn):
    """df/ds of a function of one number."""
    return lambda s: jvp(fn, (s,), (torch.ones_like(s),))[1]


def layer_norm(x: Tensor, normalized_shape, weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    """`(x - mean)/sqrt(var + eps) * weight + bias` over the last dimensions."""
    dims = tuple(range(-len(normalized_shape), 0))
    x = x - x.mean(dims, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    return (x if weight is None else x * weight) + (0 if bias is None else bias)


class Elementary(TorchFunctionMode):
    """Functions whose second forward derivative PyTorch lacks (silu, mish) or has wrong (layer_norm), made of others."""

    INSTEAD = {
        F.silu: lambda x, inplace=False: x * torch.sigmoid(x),
        F.mish: lambda x, inplace=False: x * torch.tanh(F.softplus(x)),
        F.layer_norm: layer_norm,
    }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.INSTEAD.get(func, func)(*args, **(kwargs or {}))
