"""More training images than there are: each mirrored or moved, on the device, as a function of (seed, step, rank)."""

import torch
from torch import Tensor

from diffcli.data.base import Data
from diffcli.errors import UsageError


class Augment:
    """`(x (B, C, H, W), y, draw) -> (x, y)`: images mirrored left to right with probability ½ and moved by whole pixels.

    flip: whether they are mirrored.  shift: each is moved by up to so many pixels in each direction, uniformly; what comes in
    at an edge is the image's reflection there.  A condition y that is an image goes the same way.  The model learns the
    distribution of the images so changed: mirrored digits are no digits.
    Raises UsageError for items that are no images, and for a shift that no image has room for.
    """

    def __init__(self, data: Data, flip: bool = False, shift: int = 0):
        self.flip, self.shift = flip, shift
        if not (flip or shift):
            return
        if len(data.shape) != 3:
            what = "augment.flip" if flip else "augment.shift"
            raise UsageError(f"{what} is for images, and the items have the shape {tuple(data.shape)}", "leave it out")
        least = min(data.shape[1:])
        if shift >= least:
            raise UsageError(f"augment.shift={shift}: the images have {least} pixels", f"augment.shift={least // 8}")

    def __call__(self, x: Tensor, y: Tensor, draw) -> tuple[Tensor, Tensor]:
        if not (self.flip or self.shift):
            return x, y
        mirrored = draw.uniform("flip", (len(x),)) < 0.5 if self.flip else None
        by = (draw.uniform("shift", (2, len(x))) * (2 * self.shift + 1)).long() - self.shift if self.shift else None
        y = self._changed(y, mirrored, by) if y.ndim == 4 else y
        return self._changed(x, mirrored, by), y

    def _changed(self, x: Tensor, mirrored: Tensor | None, by: Tensor | None) -> Tensor:
        if mirrored is not None:
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        if by is not None:
            rows, columns = (_reflected(by[k], n) for k, n in enumerate(x.shape[2:]))
            x = x.gather(2, rows[:, None, :, None].expand_as(x)).gather(3, columns[:, None, None, :].expand_as(x))
        return x


def _reflected(by: Tensor, n: int) -> Tensor:
    """Where each of n pixels of an image moved by so many comes from (B, n)."""
    at = (torch.arange(n, device=by.device) - by[:, None]).abs()
    return n - 1 - (n - 1 - at).abs()
