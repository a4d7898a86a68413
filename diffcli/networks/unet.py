"""The U-Net of DDPM++ and ADM: residual blocks with group norm, attention at chosen resolutions."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from diffcli.networks.embedding import Condition, zeroed


def norm(channels: int) -> nn.GroupNorm:
    """Group norm with groups of at least four channels, 32 at the most."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 4))), channels)


SHORT = 256  # pixels, up to which on a CPU the products are faster than a fused kernel, in bfloat16 twice as fast


class Attention(nn.Module):
    """Self-attention over the pixels, added to the input."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, height * width)
        if x.device.type == "cpu" and height * width <= SHORT:
            h = _products(*qkv.unbind(1))
        else:
            q, k, v = qkv.transpose(3, 4).unbind(1)
            h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.out(h.reshape(b, c, height, width))


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`v softmax(k^T q / sqrt(c))` over the first index of k^T q; all are (B, heads, c, n)."""
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(v, torch.bmm(k.transpose(1, 2), q * shape[2] ** -0.5).softmax(1)).view(shape)


class Block(nn.Module):
    """A residual block `x + conv(silu(norm(conv(silu(norm(x)))) scaled and shifted by the condition))`, and attention after it."""

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float, heads: int, *resize: nn.Module):
        super().__init__()
        self.first = nn.Sequential(norm(c_in), nn.SiLU(), *resize, nn.Conv2d(c_in, c_out, 3, padding=1))
        self.condition = nn.Linear(emb, 2 * c_out)
        self.norm = norm(c_out)
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1)))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention = Attention(c_out, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.condition(c)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(self.first(x)), 1 + scale)
        return self.attention(self.skip(x) + self.last(h))


class ResampleBlock(Block):
    """A residual block that halves or doubles the resolution of both its branches, by 2x2 means or copies, without attention.

    Brock et al. 2019, app. B, arXiv:1809.11096; Dhariwal & Nichol 2021, sec. 3, arXiv:2105.05233.
    """

    def __init__(self, channels: int, emb: int, dropout: float, up: bool):
        resize = nn.Upsample(scale_factor=2) if up else nn.AvgPool2d(2)
        super().__init__(channels, channels, emb, dropout, 0, resize)
        self.skip = resize


class UNet(nn.Module):
    """(x (B, C, H, W), c_noise (B,), label (B,), vector (B, k)) -> (B, C, H, W).

    shape: (C, H, W) of the data, H and W divisible by 2^(levels - 1), levels = len(multipliers).  channels times a level's
    multiplier are its channels; blocks residual blocks a level; attention: the resolutions (heights) with self-attention,
    by default the lowest.  resample: between levels a strided convolution (conv, DDPM's) or a residual block (block, BigGAN's).
    outputs: how many images, along the channels.  classes, vector, embedding, fourier_scale: see `Condition`.
    Raises ValueError for a shape or a value that does not fit.
    Ho et al. 2020, app. B, arXiv:2006.11239; Dhariwal & Nichol 2021, sec. 3, arXiv:2105.05233.
    """

    def __init__(
        self,
        shape: list[int],
        channels: int = 32,
        multipliers: list[int] | tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        attention: list[int] | tuple[int, ...] | None = None,
        head_channels: int = 32,
        dropout: float = 0.0,
        classes: int = 0,
        outputs: int = 1,
        vector: int = 0,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        fourier_scale: float = 0.016,
        resample: Literal["conv", "block"] = "conv",
    ):
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"it takes images (C, H, W), the data has shape {tuple(shape)}")
        image, height, width = shape
        if not multipliers:
            raise ValueError("multipliers needs one number a level, got none")
        depth = 2 ** (len(multipliers) - 1)
        if height % depth or width % depth:
            raise ValueError(
                f"{len(multipliers)} levels need a height and width divisible by {depth}, the data has {height}x{width}"
                " (fewer multipliers, or another data.size, would fit)"
            )
        for name, value in dict(channels=channels, blocks=blocks, head_channels=head_channels, outputs=outputs).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if channels % 2 or min(multipliers) < 1:
            raise ValueError(
                f"channels must be even and multipliers at least 1, got {channels} and {list(multipliers)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if resample not in ("conv", "block"):
            raise ValueError(f"resample must be conv or block, got {resample!r}")
        heights = [height // 2**level for level in range(len(multipliers))]
        attention = heights[-1:] if attention is None else attention
        if unused := [r for r in attention if r not in heights]:
            raise ValueError(f"attention at {unused[0]} never happens: the levels have the resolutions {heights}")
        emb = 4 * channels
        self.condition = Condition(emb, classes, vector, embedding, fourier_scale)

        def block(c_in, c_out, level):
            heads = max(1, c_out // head_channels) if height // 2**level in attention else 0
            if heads and c_out % heads:
                raise ValueError(f"head_channels = {head_channels} does not divide {c_out} channels evenly")
            return Block(c_in, c_out, emb, dropout, heads)

        def down(c):
            return (
                ResampleBlock(c, emb, dropout, up=False)
                if resample == "block"
                else nn.Conv2d(c, c, 3, stride=2, padding=1)
            )

        def up(c):
            return (
                ResampleBlock(c, emb, dropout, up=True)
                if resample == "block"
                else nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1))
            )

        self.first = nn.Conv2d(image, channels, 3, padding=1)
        widths = [channels * m for m in multipliers]
        c, skips, last = channels, [channels], len(widths) - 1
        self.down = nn.ModuleList()
        for level, c_out in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(c, c_out, level))
                c = c_out
                skips.append(c)
            if level < last:
                self.down.append(down(c))
                skips.append(c)
        self.middle = nn.ModuleList([block(c, c, last), block(c, c, last)])
        self.up = nn.ModuleList()
        for level, c_out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(c + skips.pop(), c_out, level))
                c = c_out
            if level > 0:
                self.up.append(up(c))
        self.last = nn.Sequential(norm(c), nn.SiLU(), zeroed(nn.Conv2d(c, outputs * image, 3, padding=1)))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        c = self.condition(c_noise, label, vector)
        h = self.first(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, c) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, c)
        for layer in self.up:
            if isinstance(layer, ResampleBlock):
                h = layer(h, c)
            else:
                h = layer(torch.cat([h, skips.pop()], dim=1), c) if isinstance(layer, Block) else layer(h)
        return self.last(h)
