"""The measurements that are built in, all linear."""

import math
from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.inverse.operator import Operator
from diffcli.diffusion.numeric import require


class Identity(Operator):
    """`A x0 = x0`: nothing but noise, to be taken away."""

    def forward(self, x0):
        return x0

    def adjoint(self, y):
        return y


class Mask(Operator):
    """`A x0 = m x0`: some coordinates are known, y is 0 at the others (inpainting).

    mask: what is known, 1 or true, of shape S or, for pictures (C, H, W), (H, W); by default all but the centre square of
    `square` times the side, and of other shapes the first half of the first axis.  y may hold anything where nothing is known.
    Raises ValueError for a mask of another shape or other values, and unless 0 < square < 1.
    """

    def __init__(self, mask: Tensor | None = None, square: float = 0.5):
        super().__init__()
        require(0 < square < 1, f"square must lie in (0, 1), got {square}")
        self.mask, self.square = None if mask is None else torch.as_tensor(mask), float(square)

    def _setup(self, shape):
        mask = _centre(shape, self.square) if self.mask is None else self.mask
        fits = mask.shape == shape or (len(shape) == 3 and mask.shape == shape[1:])
        require(fits, f"the mask has shape {tuple(mask.shape)}, the items {shape}")
        require(
            bool(((mask == 0) | (mask == 1)).all()), "a mask holds 1 where an item is known and 0 elsewhere, no more"
        )
        require(bool((mask == 1).any()), "the mask leaves nothing known: there is no measurement")
        self.known = (mask == 1).expand(shape).clone()

    def forward(self, x0):
        return torch.where(self.known, x0, 0.0)

    def adjoint(self, y):
        return torch.where(self.known, y, 0.0)

    def residual(self, y, x0):
        return torch.where(self.known, y - x0, 0.0)


class Grey(Operator):
    """`A x0`: the mean of the channels, (C, H, W) -> (1, H, W) (colorization).  Raises ValueError for one channel."""

    def _setup(self, shape):
        require(len(shape) == 3, f"grey is of pictures (C, H, W), the items have shape {shape}")
        require(shape[0] > 1, "the items have one channel: they are grey as they are")

    def forward(self, x0):
        return x0.mean(1, keepdim=True)

    def adjoint(self, y):
        return (y / self.shape[0]).expand(-1, *self.shape)


class Downsample(Operator):
    """`A x0`: the means of factor x factor blocks, (C, H, W) -> (C, H/factor, W/factor) (super-resolution).

    Raises ValueError unless factor > 1 divides both sides.
    """

    def __init__(self, factor: int = 4):
        super().__init__()
        require(factor > 1, f"factor must be at least 2, got {factor}")
        self.factor = factor

    def _setup(self, shape):
        require(len(shape) == 3, f"factor is of pictures (C, H, W), the items have shape {shape}")
        height, width = shape[1:]
        fits = [f for f in range(2, min(height, width) + 1) if height % f == 0 and width % f == 0]
        require(
            self.factor in fits,
            f"factor={self.factor} does not divide pictures of {height}x{width}"
            + (f" ({', '.join(map(str, fits))} would)" if fits else ""),
        )

    def forward(self, x0):
        return torch.nn.functional.avg_pool2d(x0, self.factor)

    def adjoint(self, y):
        f = self.factor
        return (y / f**2).repeat_interleave(f, -2).repeat_interleave(f, -1)


class Blur(Operator):
    """`A x0`: each channel of (C, H, W) under a Gaussian of `std` pixels, `K_H x0 K_W`, whose rows sum to 1.

    boundary: reflect (the picture mirrored at its edge, the last pixel twice) or circular.  K is symmetric, so A^T = A.
    Raises ValueError unless std > 0.
    """

    def __init__(self, std: float = 1.5, boundary: Literal["reflect", "circular"] = "reflect"):
        super().__init__()
        require(0 < std < math.inf, f"std must be above 0, got {std}")
        require(boundary in ("reflect", "circular"), f"boundary must be reflect or circular, got {boundary!r}")
        self.std, self.boundary = float(std), boundary
        self.register_buffer("rows", None, persistent=False)
        self.register_buffer("columns", None, persistent=False)

    def _setup(self, shape):
        require(len(shape) == 3, f"blur is of pictures (C, H, W), the items have shape {shape}")
        self.rows, self.columns = (_gaussian(n, self.std, self.boundary == "circular") for n in shape[1:])

    def forward(self, x0):
        return self.rows.to(x0) @ x0 @ self.columns.to(x0)

    def adjoint(self, y):
        return self(y)


class Matrix(Operator):
    """`A x0` with a matrix (m, d) that acts on the flattened item.  Raises ValueError for another shape."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        matrix = torch.as_tensor(matrix)
        require(matrix.ndim == 2, f"matrix must have shape (m, d), got {tuple(matrix.shape)}")
        self.register_buffer("matrix", matrix.double(), persistent=False)

    def _setup(self, shape):
        d = math.prod(shape)
        require(self.matrix.shape[1] == d, f"the matrix takes {self.matrix.shape[1]} numbers, an item has {d}")

    def forward(self, x0):
        return x0.flatten(1) @ self.matrix.to(x0).T

    def adjoint(self, y):
        return (y @ self.matrix.to(y)).view(-1, *self.shape)


def _centre(shape: tuple[int, ...], part: float) -> Tensor:
    if len(shape) != 3:
        known = torch.zeros(shape)
        known[: max(1, round(shape[0] * part))] = 1
        return known
    known = torch.ones(shape[1:])
    sides = [max(1, round(n * part)) for n in shape[1:]]
    first = [(n - side) // 2 for n, side in zip(shape[1:], sides, strict=True)]
    known[first[0] : first[0] + sides[0], first[1] : first[1] + sides[1]] = 0
    return known


def _gaussian(n: int, std: float, circular: bool) -> Tensor:
    """The matrix (n, n) of a convolution with a Gaussian cut at 6 std, float64."""
    offsets = torch.arange(-math.ceil(6 * std), math.ceil(6 * std) + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    at = torch.arange(n)[:, None] + offsets
    if circular:
        at = at % n
    else:
        at = at % (2 * n)
        at = torch.minimum(at, 2 * n - 1 - at)  # the mirror image beyond the edge
    rows = torch.zeros(n, n, dtype=torch.float64)
    return rows.scatter_add_(1, at, (weights / weights.sum()).expand_as(at).contiguous())
