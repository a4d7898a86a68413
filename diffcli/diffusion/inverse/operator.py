"""What every measurement is: `y = A(x0) + s n` of items x0 (B, *S) in model space, y (B, *M)."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from diffcli.diffusion.numeric import require


class Operator(nn.Module):
    """A of an inverse problem, item by item; a subclass writes `forward` (B, *S) -> (B, *M), and `_setup` where A needs the shape.

    `setup(shape)` comes before all else.  linear: whether A is; then `adjoint` is its transpose.
    known (*S) bool: which coordinates y holds as they are, where A is a mask, else None.
    """

    linear: bool = True
    known: Tensor | None
    shape: tuple[int, ...] | None = None
    measured: tuple[int, ...] | None = None  # M, once it is set up

    def __init__(self):
        super().__init__()
        self.register_buffer("known", None, persistent=False)

    def setup(self, shape) -> None:
        """Take the shape S of the items.  Raises ValueError where A does not go with it."""
        self.shape = tuple(shape)
        self._setup(self.shape)
        self.measured = tuple(self(self._zeros(1)).shape[1:])

    def _setup(self, shape: tuple[int, ...]) -> None:
        """What a subclass does of `setup`."""

    @abstractmethod
    def forward(self, x0: Tensor) -> Tensor:
        """A(x0) (B, *M) of x0 (B, *S)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """`A^T y` (B, *S) of y (B, *M), `<A x, y> = <x, A^T y>`, by differentiating the linear A."""
        return self.pull(self._zeros(len(y)).to(y), y)

    def pull(self, x0: Tensor, y: Tensor) -> Tensor:
        """`A'(x0)^T y` (B, *S), with the derivative of A at x0."""
        return self._linearised(x0, y)[0].detach()

    def push(self, x0: Tensor, v: Tensor) -> Tensor:
        """`A'(x0) v` (B, *M) of v (B, *S), with the derivative of A at x0."""
        if self.linear:
            return self(v)
        with torch.enable_grad():  # the derivative of A'^T w by w, whatever w
            w = torch.zeros_like(self(x0)).requires_grad_()
            back, _ = self._linearised(x0, w, create_graph=True)
            if not back.requires_grad:
                return torch.zeros_like(w).detach()
            return torch.autograd.grad(back, w, v.detach(), materialize_grads=True)[0]

    def residual(self, y: Tensor, x0: Tensor) -> Tensor:
        """`y - A(x0)` (B, *M), without what A can never reach."""
        return y - self(x0)

    def _linearised(self, x0: Tensor, y: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            out = self(x0)
            if not out.requires_grad:
                return torch.zeros_like(x0), out
            return torch.autograd.grad(out, x0, y, create_graph=create_graph, materialize_grads=True)[0], out

    def _zeros(self, n: int) -> Tensor:
        require(self.shape is not None, f"{type(self).__name__} has not been set up with the shape of the items")
        own = next((a for a in (*self.parameters(), *self.buffers()) if a.is_floating_point()), torch.zeros(()))
        return torch.zeros(n, *self.shape, dtype=own.dtype, device=own.device)
