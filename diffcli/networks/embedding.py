"""How a network is told the noise level and the class."""

import math

import torch
from torch import Tensor, nn


class Sinusoidal(nn.Module):
    """`(cos(w_j c), sin(w_j c))` with `w_j = max_period^(-j/half)`, c (B,) -> (B, dim).

    Vaswani et al. 2017, sec. 3.5, arXiv:1706.03762.  Raises ValueError if dim is odd.
    """

    def __init__(self, dim: int, max_period: float = 10_000.0):
        super().__init__()
        if dim % 2:
            raise ValueError(f"the embedding dimension must be even, got {dim}")
        half = dim // 2
        self.register_buffer("freqs", torch.exp(-math.log(max_period) * torch.arange(half) / half), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        angle = c[:, None] * self.freqs.to(c.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Condition(nn.Module):
    """The embedding (B, dim) of the noise level c_noise (B,), plus that of a label (B,) where classes > 0.

    Label `classes` stands for no label; it is used when none is given.
    """

    def __init__(self, dim: int, classes: int = 0):
        super().__init__()
        if classes < 0:
            raise ValueError(f"classes must be at least 0, got {classes}")
        self.noise = nn.Sequential(Sinusoidal(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.classes = classes
        self.label = nn.Embedding(classes + 1, dim) if classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        emb = self.noise(c_noise)
        if self.label is not None:
            label = torch.full_like(c_noise, self.classes, dtype=torch.int64) if label is None else label
            emb = emb + self.label(label)
        return nn.functional.silu(emb)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with its parameters set to zero: a residual branch that starts as nothing."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
