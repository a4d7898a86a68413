"""DiT: a transformer over the patches of an image, told its conditions by adaptive layer norms that start as nothing."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from diffcli.networks.embedding import Condition, zeroed


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C patch^2): the patches in reading order, `N = H W / patch^2`."""
    b, c, height, width = x.shape
    x = x.view(b, c, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch**2)


def unpatchify(tokens: Tensor, patch: int, shape: tuple[int, int, int]) -> Tensor:
    """(B, N, C patch^2) -> (B, C, H, W), the inverse of `patchify`; shape is (C, H, W)."""
    c, height, width = shape
    x = tokens.view(-1, height // patch, width // patch, c, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, height, width)


def positions(dim: int, rows: int, columns: int) -> Tensor:
    """`(sin, cos)(w_j row), (sin, cos)(w_j column)` with `w_j = 10000^(-4 j / dim)`, j < dim/4, for each place: (N, dim).

    Vaswani et al. 2017, sec. 3.5, arXiv:1706.03762, half of the dimensions for each axis; He et al. 2022, arXiv:2111.06377.
    """
    freqs = torch.exp(-math.log(10_000.0) * torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.reshape(-1, 1) * freqs for place in (row, column)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


class Modulated(nn.LayerNorm):
    """`norm(h) (1 + scale) + shift` with scale and shift (B, width) from the condition."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6, elementwise_affine=False)

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return super().forward(h) * (1 + scale[:, None]) + shift[:, None]


class TransformerBlock(nn.Module):
    """`h + gate attention(norm(h))`, then `h + gate mlp(norm(h))`: shifts, scales and gates from the condition, first zero.

    Peebles & Xie 2023, sec. 3.2 (adaLN-Zero), arXiv:2212.09748.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([Modulated(width), Modulated(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        for layer in (self.qkv, self.out, self.mlp[0], self.mlp[-1]):
            xavier(layer)
        self.condition = zeroed(nn.Linear(width, 6 * width))

    def attention(self, h: Tensor) -> Tensor:
        b, n, width = h.shape
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).reshape(b, n, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(c).chunk(6, dim=1)
        h = h + gate1[:, None] * self.attention(self.norms[0](h, shift1, scale1))
        return h + gate2[:, None] * self.mlp(self.norms[1](h, shift2, scale2))


def xavier(layer: nn.Linear) -> nn.Linear:
    """The layer with Glorot's uniform weights and no bias, as transformers start."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class DiT(nn.Module):
    """(x (B, C, H, W), c_noise (B,), label (B,), vector (B, k)) -> (B, C, H, W): `depth` transformer blocks of `width` units.

    shape: (C, H, W) of the data, H and W divisible by patch; a patch is one token.  heads divide width, width is divisible by 4.
    outputs: how many images, along the channels.  classes, vector, embedding, fourier_scale: see `Condition`.
    Raises ValueError for a shape or a value that does not fit.  Peebles & Xie 2023, arXiv:2212.09748.
    """

    def __init__(
        self,
        shape: list[int],
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        classes: int = 0,
        outputs: int = 1,
        vector: int = 0,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        fourier_scale: float = 0.016,
    ):
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"it takes images (C, H, W), the data has shape {tuple(shape)}")
        for name, value in dict(patch=patch, width=width, depth=depth, heads=heads, outputs=outputs).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        image, rows, columns = shape
        if rows % patch or columns % patch:
            raise ValueError(f"patch = {patch} does not divide the data's {rows}x{columns} (another patch would fit)")
        if width % 4 or width % heads:
            raise ValueError(f"width must be divisible by 4 and by heads = {heads}, got {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.patch, self.shape = patch, (outputs * image, rows, columns)
        self.condition = Condition(width, classes, vector, embedding, fourier_scale)
        self.first = xavier(nn.Linear(image * patch**2, width))
        self.register_buffer("places", positions(width, rows // patch, columns // patch), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.norm = Modulated(width)
        self.last = zeroed(nn.Linear(width, outputs * image * patch**2))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        c = self.condition(c_noise, label, vector)
        h = self.first(patchify(x, self.patch)) + self.places.to(x.dtype)
        for block in self.blocks:
            h = block(h, c)
        return unpatchify(self.last(self.norm(h, *self.modulation(c).chunk(2, dim=1))), self.patch, self.shape)
