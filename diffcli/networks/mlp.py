"""A residual multi-layer perceptron for points and vectors."""

import math
from typing import Literal

from torch import Tensor, nn

from diffcli.networks.embedding import Condition, zeroed


class Residual(nn.Module):
    """`h + W2 silu(W1 silu(norm(h)) + V c)`."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.condition = nn.Linear(width, width)
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Linear(width, width)))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return h + self.last(self.first(nn.functional.silu(self.norm(h))) + self.condition(c))


class MLP(nn.Module):
    """(x (B, *shape), c_noise (B,), label (B,), vector (B, k)) -> (B, *shape): `blocks` residual blocks of `width` units.

    shape is the data's and may be any: it is flattened.  outputs: how many tensors of that shape, along its first dimension.
    classes, vector, embedding, fourier_scale: see `Condition`.  Raises ValueError unless width >= 2 is even and blocks >= 1.
    """

    def __init__(
        self,
        shape: list[int],
        width: int = 256,
        blocks: int = 4,
        dropout: float = 0.0,
        classes: int = 0,
        outputs: int = 1,
        vector: int = 0,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        fourier_scale: float = 0.016,
    ):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width must be even and at least 2, got {width}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if outputs < 1:
            raise ValueError(f"outputs must be at least 1, got {outputs}")
        d = math.prod(shape)
        self.condition = Condition(width, classes, vector, embedding, fourier_scale)
        self.first = nn.Linear(d, width)
        self.blocks = nn.ModuleList(Residual(width, dropout) for _ in range(blocks))
        # no norm here: the output can grow with the input, as noise far out needs
        self.last = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, outputs * d)))
        self.shape = (outputs * shape[0], *shape[1:])

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        c = self.condition(c_noise, label, vector)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.last(h).view(-1, *self.shape)
