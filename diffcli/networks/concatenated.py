"""An image as a condition: further channels beside the noised one, of any network."""

import math

import torch
from torch import Tensor, nn


class Concatenated(nn.Module):
    """(x (B, C, H, W), c_noise (B,), image (B, C', H, W), **others) -> (B, outputs C, H, W): `F([x, image, 1], c_noise, **others)`.

    network: F of C + C' + 1 channels, of each of whose outputs the first C are taken.  image: (C', H, W) of the condition.
    An item without an image (None for all, or a NaN in its row: ∅) has zeros in its place, and a last channel of 0.
    Raises ValueError for an image of another shape, and a network whose output has not the channels of its input.
    Saharia et al. 2022 (Palette), sec. 3, arXiv:2111.05826.
    """

    def __init__(self, network: nn.Module, image: list[int]):
        super().__init__()
        if len(image) != 3:
            raise ValueError(f"it takes images (C, H, W) as conditions, got the shape {tuple(image)}")
        self.network, self.image = network, tuple(image)

    def forward(self, x: Tensor, c_noise: Tensor, image: Tensor | None = None, **others) -> Tensor:
        n, channels = x.shape[:2]
        if image is None:
            image = x.new_full((n, *self.image), math.nan)
        if image.shape != (n, *self.image):
            raise ValueError(
                f"the condition images must be ({n}, {', '.join(map(str, self.image))}), got {tuple(image.shape)}"
            )
        there = ~image.isnan().flatten(1).any(1).view(n, 1, 1, 1)
        flag = there.to(x.dtype).expand(n, 1, *self.image[1:])
        wide = torch.cat([x, torch.where(there, image.to(x.dtype), 0), flag], dim=1)
        out = self.network(wide, c_noise, **others)
        if out.shape[1] % wide.shape[1]:
            raise ValueError(f"its network takes {wide.shape[1]} channels, and must return as many, not {out.shape[1]}")
        return out.unflatten(1, (-1, wide.shape[1]))[:, :, :channels].flatten(1, 2)
