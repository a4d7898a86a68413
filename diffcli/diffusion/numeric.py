"""Small float64 helpers shared by schedules, SDEs and samplers."""

import torch
from torch import Tensor, nn


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


def transformed(t: Tensor) -> bool:
    """Whether t is that of a function transform (jvp, vmap, grad), which shows no values."""
    return torch._C._functorch.is_functorch_wrapped_tensor(t)


def derivative(fn, t: Tensor) -> Tensor:
    """d fn / dt of an elementwise function, by automatic differentiation; differentiable itself, forward and where t is."""
    if transformed(t):  # it knows torch.func alone, which is slower
        return torch.func.grad(lambda t: fn(t).sum())(t)
    again = t.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        t = t if again else t.detach().requires_grad_()
        y = fn(t)
        return torch.autograd.grad(y.sum(), t, create_graph=again)[0] if y.requires_grad else torch.zeros_like(y)


def match(c: Tensor | float, x: Tensor) -> Tensor | float:
    """A coefficient, a number or of shape () or (B,), made to broadcast over x (B, *S), in x's dtype and on its device.

    A scalar stays a 0-dimensional CPU tensor: PyTorch multiplies by it without a transfer or a synchronisation.
    """
    if isinstance(c, (int, float)):
        return c
    if c.ndim == 0:
        return c.to(x.dtype)
    return c.to(x).view(-1, *[1] * (x.ndim - 1))


def spread(c: Tensor | float, x: Tensor) -> Tensor:
    """A coefficient, a number or of shape () or (B,), as (B,) in the dtype and on the device of x (B, *S)."""
    if isinstance(c, (int, float)):
        return x.new_full((x.shape[0],), c)
    return c.to(x).expand(x.shape[0])


def combine(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """`sum c x` over terms (c, x); of numbers it is accumulated in the one tensor that it makes."""
    (c, x), *rest = terms
    total = c * x
    for c, x in rest:
        total = total.add_(x, alpha=c) if isinstance(c, (int, float)) else total + c * x
    return total


class Constants(nn.Module):
    """Float64 tensors that a module carries: they move with it, stay float64 under every cast, and are in no state dict."""

    def __init__(self, *tensors: Tensor):
        super().__init__()
        self.host = tensors  # times come as CPU scalars in samplers: reading them must not wait for a device
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"constant{i}", tensor.double(), persistent=False)

    def _apply(self, fn, recurse=True):
        return super()._apply(lambda a: a.to(fn(a).device), recurse)

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors on this device."""
        moved = tuple(self.buffers())
        return moved if moved[0].device == device else tuple(a.to(device) for a in self.host)


def invert(value_and_slope, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The x in [low, high] at which a decreasing function is y, elementwise, to round-off; the nearer end where there is none.

    `value_and_slope(x)` returns the function and its derivative.  Newton's steps, bisected where one leaves the bracket or
    does not halve it soon enough.  Press et al. 2007, Numerical Recipes, sec. 9.4.
    """
    x, last = 0.5 * (low + high), high - low
    for _ in range(200):
        value, slope = value_and_slope(x)
        above = value > y  # the root lies to the right
        low, high = torch.where(above, x, low), torch.where(above, high, x)
        newton = x + (y - value) / slope
        fits = (newton >= low) & (newton <= high) & ((newton - x).abs() <= 0.5 * last)
        new = torch.where(fits, newton, 0.5 * (low + high))
        done = (value - y).abs() <= 2e-16 * (1 + y.abs())  # the function itself is no more exact than that
        new = torch.where(done, x, new)
        last, x = (new - x).abs(), new
        if bool((last <= 2e-16 * x.abs()).all()):
            break
    return x
