"""Maps between source units (pixels, digits, points) and the space a model works in, each with its log-Jacobian."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from diffcli.errors import UsageError


class Transform(ABC):
    """An affine map `x -> y`, the same in every dimension, that can be undone.

    levels: number of values a dimension of x takes (integers 0..levels-1), or None where x is continuous.
    log_jacobian: `log |dy/dx|` per dimension, in nats; `log p(x) = log p(y) + d log_jacobian`.
    """

    levels: int | None
    log_jacobian: float

    @abstractmethod
    def encode(self, x: Tensor, u: Tensor | float | None = None) -> Tensor:
        """Take x `(B, *S)` of any dtype from source units to model space: float64 if x is, else float32.

        u: `(B, *S)` or a number in [0, 1), where in its level an integer lies; None is the level's centre, ½.
        """

    @abstractmethod
    def decode(self, y: Tensor) -> Tensor:
        """Take y `(B, *S)` back to source units, the exact inverse: float64 if y is, else float32; neither clipped nor
        rounded."""


@final
class Identity(Transform):
    """`y = x`, for points and arrays, which are not scaled; u has no meaning here and is not read."""

    levels = None
    log_jacobian = 0.0

    def encode(self, x: Tensor, u: Tensor | float | None = None) -> Tensor:
        return x.to(_float_dtype(x))

    def decode(self, y: Tensor) -> Tensor:
        return y.to(_float_dtype(y))


@final
class Levels(Transform):
    """`y = 2 (k + u) / levels - 1` takes the integers k = 0..levels-1 into (-1, 1), `log_jacobian = log(2 / levels)`.

    With u uniform on [0, 1) this is uniform dequantisation: 256 levels then cost 7 bits per dimension (Theis et al.
    2016, §3.1). Raises UsageError where there are fewer than 2 levels.
    """

    def __init__(self, levels: int):
        if levels < 2:
            raise UsageError(f"a transform needs at least 2 levels, not {levels}")
        self.levels = levels
        self.log_jacobian = math.log(2 / levels)

    def encode(self, x: Tensor, u: Tensor | float | None = None) -> Tensor:
        # Added before the division: the sum of a small integer and u is exact to half an ulp of the level.
        k = x.to(_float_dtype(x))
        return (k + (0.5 if u is None else u)).to(k.dtype) * (2 / self.levels) - 1

    def decode(self, y: Tensor) -> Tensor:
        """Give `k + u - ½ = (y + 1) levels / 2 - ½`: the integer itself where it was encoded at its centre."""
        return (y.to(_float_dtype(y)) + 1) * (self.levels / 2) - 0.5


def _float_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
