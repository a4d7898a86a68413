"""The network of a classifier: residual blocks over pixels or over a vector, a layer of features, the logits."""

import math
from typing import Literal

from torch import Tensor, nn

from diffcli.networks.embedding import Condition
from diffcli.networks.mlp import Residual
from diffcli.networks.unet import Block, norm

POOLED = 4  # height and width of what the features see of an image, at most


class ImageBody(nn.Module):
    """(x (B, C, H, W), condition (B, emb)) -> (B, dim): `blocks` residual blocks a level, each level at half the resolution
    of the one before, then means over the cells of a 4 x 4 grid.

    Any C, H and W; a level smaller than the grid is taken as it is.  He et al. 2016, arXiv:1512.03385.
    """

    def __init__(self, shape: list[int], channels: int, multipliers, blocks: int, emb: int, dropout: float):
        super().__init__()
        image, height, width = shape
        widths = [channels * m for m in multipliers]
        self.first = nn.Conv2d(image, widths[0], 3, padding=1)
        self.levels, c = nn.ModuleList(), widths[0]
        for level, c_out in enumerate(widths):
            if level:
                self.levels.append(nn.Conv2d(c, c_out, 3, stride=2, padding=1))
                height, width = math.ceil(height / 2), math.ceil(width / 2)
            self.levels.extend(Block(c_out, c_out, emb, dropout, 0) for _ in range(blocks))
            c = c_out
        grid = min(POOLED, height), min(POOLED, width)
        self.last = nn.Sequential(norm(c), nn.SiLU(), nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.dim = c * grid[0] * grid[1]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.levels:
            h = layer(h, c) if isinstance(layer, Block) else layer(h)
        return self.last(h)


class VectorBody(nn.Module):
    """(x (B, *S), condition (B, dim)) -> (B, dim): a residual perceptron."""

    def __init__(self, shape: list[int], dim: int, blocks: int, dropout: float):
        super().__init__()
        self.first = nn.Linear(math.prod(shape), dim)
        self.blocks = nn.ModuleList(Residual(dim, dropout) for _ in range(blocks))
        self.last = nn.Sequential(nn.LayerNorm(dim), nn.SiLU())
        self.dim = dim

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.last(h)


class ClassifierNetwork(nn.Module):
    """(x (B, *S), c_noise (B,)) -> features (B, features), logits (B, classes), `logits = W silu(features) + b`.

    Images (C, H, W) go through `ImageBody` with channels, multipliers and blocks, anything else through `VectorBody` with
    width and blocks.  embedding, fourier_scale: of the noise level, see `Condition`; a network of clean items is always told
    the same one.  Raises ValueError for a value that does not fit.
    """

    def __init__(
        self,
        shape: list[int],
        classes: int,
        features: int = 64,
        channels: int = 16,
        multipliers: list[int] | tuple[int, ...] = (1, 2, 4),
        width: int = 128,
        blocks: int = 1,
        dropout: float = 0.0,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        fourier_scale: float = 0.016,
    ):
        super().__init__()
        for name, value in dict(features=features, channels=channels, width=width, blocks=blocks).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"multipliers needs one number of at least 1 a level, got {list(multipliers)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        emb = 4 * channels if len(shape) == 3 else width
        self.condition = Condition(emb, embedding=embedding, fourier_scale=fourier_scale)
        if len(shape) == 3:
            self.body = ImageBody(shape, channels, multipliers, blocks, emb, dropout)
        else:
            self.body = VectorBody(shape, width, blocks, dropout)
        self.features = nn.Linear(self.body.dim, features)
        self.logits = nn.Linear(features, classes)

    def forward(self, x: Tensor, c_noise: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.body(x, self.condition(c_noise)))
        return features, self.logits(nn.functional.silu(features))
