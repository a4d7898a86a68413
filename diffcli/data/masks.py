"""Which part of an item is known, from the words of the command line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.data.array import load_array
from diffcli.data.decode import read_picture
from diffcli.data.pictures import is_image
from diffcli.errors import UsageError

SHAPES = ("square", "outside", "left", "right", "top", "bottom", "random")


def known_of(mask: str, size: float, known: Sequence[int] | None, shape: Sequence[int], draw) -> Tensor:
    """What is known, (H, W) of pictures and `shape` of other items, bool.

    mask: of pictures one of SHAPES, where `size` is the unknown part's side or share, or a file, see `mask_file`.  known: of
    other items the coordinates that are known, counted in the flattened item; by default the first half, 1 - size of them.
    draw(shape) gives uniform numbers.  Raises UsageError for what is neither, and a mask under which nothing or all is known.
    """
    if not 0 < size < 1:
        raise UsageError(f"task.size must lie between 0 and 1, got {size:g}")
    if not is_image(shape):
        found = _coordinates(mask, size, known, shape, draw)
    elif known is not None:
        raise UsageError(f"task.known={list(known)} is of points, and the model's items are pictures", "task.mask=…")
    else:
        height, width = shape[1:]
        found = ~(_unknown(mask, size, height, width, draw) if mask in SHAPES else mask_file(mask, height, width))
    if not found.any():
        raise UsageError("under this mask nothing is known: there is nothing to go by", "a smaller task.size")
    if found.all():
        raise UsageError("under this mask everything is known: there is nothing to fill in", "a larger task.size")
    return found


def mask_file(path: str, height: int, width: int) -> Tensor:
    """The unknown part, (H, W) bool: white in a picture, which is scaled as inputs are, or 1 in a .npy (H, W) of 0 and 1.

    Raises UsageError for a file that is not there, or holds something else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(
            f"task.mask={path}: there is no such mask or file", f"task.mask={'|'.join(SHAPES)}|alpha, or a file"
        )
    if file.suffix.lower() != ".npy":
        if height != width:
            raise UsageError(f"the model's pictures are {height}x{width}, not square", "task.mask=FILE.npy")
        return read_picture(file, height, 1)[0] >= 128
    values = load_array(str(file)).squeeze()
    if tuple(values.shape) != (height, width) or not ((values == 0) | (values == 1)).all():
        raise UsageError(f"task.mask={path} must hold 0 and 1 of shape ({height}, {width})")
    return values == 1


def transparent(path: Path, height: int, width: int) -> Tensor:
    """Where a picture is transparent, (H, W) bool, scaled as the picture itself.  Raises UsageError where it is nowhere."""
    from PIL import Image, ImageOps

    if path.suffix.lower() != ".npy":
        read_picture(path, 1, 1)  # whatever is wrong with the file is said here
        with Image.open(path) as opened:
            if opened.has_transparency_data:
                alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")
                alpha = ImageOps.fit(alpha, (width, height), Image.BICUBIC)
                return torch.from_numpy(np.array(alpha)) < 128
    raise UsageError(f"task.mask=alpha: {path} has no transparent part", "task.mask=mask.png, where white is unknown")


def _unknown(mask: str, size: float, height: int, width: int, draw) -> Tensor:
    found = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = max(1, round(height * size)), max(1, round(width * size))
    if mask in ("square", "outside"):
        top, left = (height - rows) // 2, (width - columns) // 2
        found[top : top + rows, left : left + columns] = True
        return found if mask == "square" else ~found
    if mask == "random":
        return draw((height, width)) < size
    part = {
        "left": (slice(None), slice(columns)),
        "right": (slice(None), slice(width - columns, None)),
        "top": (slice(rows), slice(None)),
        "bottom": (slice(height - rows, None), slice(None)),
    }[mask]
    found[part] = True
    return found


def _coordinates(mask: str, size: float, known: Sequence[int] | None, shape: Sequence[int], draw) -> Tensor:
    found = torch.zeros(tuple(shape), dtype=torch.bool)
    flat, count = found.view(-1), found.numel()
    if mask == "random" and known is None:
        return draw(tuple(shape)) >= size
    if mask != "square":
        raise UsageError(
            f"task.mask={mask} is of pictures, and the model's items have shape {tuple(shape)}",
            "task.known=[0], or task.mask=random",
        )
    chosen = list(range(max(1, round(count * (1 - size))))) if known is None else list(known)
    if outside := [i for i in chosen if not 0 <= i < count]:
        raise UsageError(f"task.known={chosen}: an item has coordinates 0 to {count - 1}, and no {outside[0]}")
    flat[chosen] = True
    return found
