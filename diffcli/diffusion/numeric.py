"""Small float64 helpers shared by schedules, SDEs and samplers."""

import torch
from torch import Tensor


def require(condition: bool, sentence: str) -> None:
    """Raise ValueError(sentence) unless the condition holds: how constructors refuse a value."""
    if not condition:
        raise ValueError(sentence)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + e^-x)) to full relative precision on both sides, and its derivative too."""
    # minimum, not clamp: its derivative at 0 is 1/2, the right one
    return torch.minimum(x, torch.zeros_like(x)) - torch.log1p(torch.exp(-x.abs()))


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without PyTorch's switch to the identity at 20, which costs 2e-9."""
    return -log_sigmoid(-x)


def derivative(fn, t: Tensor) -> Tensor:
    """d fn / dt of an elementwise function, by automatic differentiation."""
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        y = fn(t)
        return torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(y)


def match(c: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,) made to broadcast over x (B, *S), in x's dtype and on its device.

    A scalar stays a 0-dimensional CPU tensor: PyTorch multiplies by it without a transfer or a synchronisation.
    """
    if c.ndim == 0:
        return c.to(x.dtype)
    return c.to(x).view(-1, *[1] * (x.ndim - 1))
