"""A measurement of the user's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffcli.diffusion.inverse.operator import Operator
from diffcli.diffusion.numeric import require

PROBES = 4  # random items that tell what a function does


class Custom(Operator):
    """`A x0 = fn(x0)`, any function or module (B, *S) -> (B, *M) that acts item by item and can be differentiated.

    Whether it is linear is found out by random items, `A(a x + b z) = a A(x) + b A(z)`.
    Raises ValueError where it is no such function: wrong shapes, values that are not finite, another answer to the same
    question, items that depend on each other, no derivative.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fn = fn
        if isinstance(fn, nn.Module):
            fn.requires_grad_(False)

    def forward(self, x0):
        own = next(self.parameters(), x0)  # a module computes in its own dtype
        out = self.fn(x0.to(own.dtype))
        return out.to(x0.dtype) if isinstance(out, Tensor) else out

    def setup(self, shape):
        self.shape = tuple(shape)
        draw = torch.Generator().manual_seed(0)
        like = self._zeros(1)
        x, z = (torch.randn(PROBES, *shape, generator=draw).to(like) for _ in range(2))
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            y = self(leaf)
        require(isinstance(y, Tensor), f"the operator must return a tensor, got {type(y).__name__}")
        require(
            y.is_floating_point() and y.ndim > 1 and len(y) == PROBES,
            f"the operator must map ({PROBES}, {', '.join(map(str, shape))}) to numbers of shape ({PROBES}, …), "
            f"got {tuple(y.shape)}",
        )
        slope = torch.autograd.grad(y.sum(), leaf, allow_unused=True)[0] if y.requires_grad else None
        require(slope is not None, "the operator cannot be differentiated: write it with torch alone, without detach")
        y = y.detach()
        require(bool(y.isfinite().all()), "the operator returns values that are not finite")
        self.measured, size = tuple(y.shape[1:]), y.abs().max() + 1e-30

        def same(a: Tensor, b: Tensor) -> bool:
            return bool((a - b).abs().max() <= 1e-4 * size)

        require(same(self(x), y), "the operator gives two answers to one question: its noise belongs into task.noise")
        require(same(self(x[:1]), y[:1]), "the operator mixes the items of a batch: it must act on each alone")
        self.linear = same(self(2 * x - 3 * z), 2 * y - 3 * self(z)) and same(self(0 * x), 0 * y)
