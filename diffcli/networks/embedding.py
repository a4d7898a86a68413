"""How a network is told the noise level and what it is conditioned on: a class, a vector, or nothing."""

import math
from typing import Literal

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


class Fourier(nn.Module):
    """`(cos(2 pi w_j c), sin(2 pi w_j c))` with random `w_j ~ N(0, scale^2)`, drawn once and kept, c (B,) -> (B, dim).

    The inner product of two of them tends to `dim/2 exp(-2 pi^2 scale^2 (a - b)^2)`: levels nearer than 1/scale look alike.
    Raises ValueError if dim is odd or scale is not above 0.
    Rahimi & Recht 2007; Tancik et al. 2020, arXiv:2006.10739; Song et al. 2021, app. C.2, arXiv:2011.13456.
    """

    def __init__(self, dim: int, scale: float):
        super().__init__()
        if dim % 2:
            raise ValueError(f"the embedding dimension must be even, got {dim}")
        if scale <= 0:
            raise ValueError(f"fourier_scale must be above 0, got {scale}")
        self.register_buffer("freqs", scale * torch.randn(dim // 2))  # persistent: a checkpoint needs the same ones

    def forward(self, c: Tensor) -> Tensor:
        angle = 2 * math.pi * c[:, None] * self.freqs.to(c.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Given(nn.Module):
    """The embedding (B, dim) of a label (B,) where classes > 0, plus that of a vector (B, k) where vector = k > 0.

    Label -1 is no label, a row of NaN is no vector; both have an embedding of their own, used too where none is given.
    Raises ValueError for a condition that it does not take, and for one of another shape, type or range.
    """

    def __init__(self, dim: int, classes: int = 0, vector: int = 0):
        super().__init__()
        for name, value in dict(classes=classes, vector=vector).items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.classes, self.dim = classes, vector
        self.label = nn.Embedding(classes + 1, dim) if classes else None
        self.vector = nn.Sequential(nn.Linear(vector, dim), nn.SiLU(), nn.Linear(dim, dim)) if vector else None
        self.no_vector = nn.Parameter(torch.zeros(dim)) if vector else None

    def add_to(self, emb: Tensor, label: Tensor | None, vector: Tensor | None) -> Tensor:
        """emb (B, dim) plus the embeddings of what is given."""
        n = emb.shape[0]
        check_label(label, n, self.classes)
        check_vector(vector, n, self.dim)
        if self.label is not None:
            label = torch.full((n,), -1, device=emb.device) if label is None else label
            emb = emb + self.label(torch.where(label < 0, self.classes, label))
        if self.vector is not None:
            none = emb.new_full((n, self.dim), math.nan) if vector is None else vector.to(emb.dtype)
            there = ~none.isnan().any(1, keepdim=True)
            emb = emb + torch.where(there, self.vector(torch.where(there, none, 0)), self.no_vector)
        return emb


def check_label(label: Tensor | None, n: int, classes: int, none: bool = True) -> None:
    """Raise ValueError unless label is None or (n,) of 0 ... classes - 1, or of -1 too where that may be `none`."""
    if label is None:
        return
    if not classes:
        raise ValueError("the network has no classes (network.classes=0) and takes no label")
    if label.shape != (n,) or label.dtype != torch.int64:
        raise ValueError(f"labels must be ({n},) of int64, got {tuple(label.shape)} of {label.dtype}")
    first = -1 if none else 0
    readable = label.device.type == "cpu"  # a GPU would be waited for, and refuses them itself
    if readable and not torch.compiler.is_compiling() and bool(((label < first) | (label >= classes)).any()):
        more = " (-1 is none)" if none else ""
        raise ValueError(f"labels must lie from {first} to {classes - 1}{more}, got {label.min()} to {label.max()}")


def check_vector(vector: Tensor | None, n: int, k: int) -> None:
    """Raise ValueError unless vector is None or (n, k), and there is a k at all."""
    if vector is not None and not k:
        raise ValueError("the network has no condition vector (network.vector=0) and takes none")
    if vector is not None and vector.shape != (n, k):
        raise ValueError(f"the condition vectors must be ({n}, {k}), got {tuple(vector.shape)}")


class Condition(Given):
    """The embedding (B, dim) of the noise level c_noise (B,), plus those of the label and the vector, see `Given`.

    embedding: sinusoidal, or fourier with frequencies of standard deviation fourier_scale in cycles a unit of c_noise.
    """

    def __init__(
        self,
        dim: int,
        classes: int = 0,
        vector: int = 0,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        fourier_scale: float = 0.016,
    ):
        if embedding not in ("sinusoidal", "fourier"):
            raise ValueError(f"embedding must be sinusoidal or fourier, got {embedding!r}")
        first = Sinusoidal(dim) if embedding == "sinusoidal" else Fourier(dim, fourier_scale)
        noise = nn.Sequential(first, nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        super().__init__(dim, classes, vector)
        self.noise = noise

    def forward(self, c_noise: Tensor, label: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        return nn.functional.silu(self.add_to(self.noise(c_noise), label, vector))


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with its parameters set to zero: a residual branch that starts as nothing."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
