"""Pictures of image items: grids, single files, the denoising as a strip and as a film; points go to `scatter`."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.base import Data
from diffcli.data.gif import write_gif
from diffcli.data.scatter import scatter, scatter_frames, scatter_gif
from diffcli.errors import NumericalError, UsageError

GRID_WIDTH = 640  # pixels at least: 8x8 digits are to be seen without zooming
SEPARATOR = 128  # grey, told from both a black and a white background


def picture(x: ArrayLike, path: Path | str, data: Data) -> None:
    """Write one picture of items x `(N, *S)` in source units: a grid where S is `(1|3, H, W)`, else a scatter."""
    if is_image(np.shape(x)[1:]):
        image_grid(x, path, data.transform.levels)
    else:
        scatter({data.units: x}, path)


def film(frames: ArrayLike, path: Path | str, data: Data) -> None:
    """Write frames `(F, N, *S)` in source units, first to last, as a strip `path.png` and a film `path.gif`."""
    path = Path(path)
    if is_image(np.shape(frames)[2:]):
        strip(frames, path.with_suffix(".png"), data.transform.levels)
        gif(frames, path.with_suffix(".gif"), data.transform.levels)
    else:
        scatter_frames(frames, path.with_suffix(".png"))
        scatter_gif(frames, path.with_suffix(".gif"))


def is_image(shape: Sequence[int]) -> bool:
    """Tell whether an item's shape is that of a picture, `(1, H, W)` or `(3, H, W)`."""
    return len(shape) == 3 and shape[0] in (1, 3)


def image_grid(
    x: ArrayLike,
    path: Path | str,
    levels: int | None,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> None:
    """Write x `(N, C, H, W)` in source units as one PNG with thin separators, row by row.

    levels: as in `pixels`.  columns: images in a row, about √N if None.  labels: N words, one under each image.
    scale: pixels per pixel, nearest; if None the least that makes the grid GRID_WIDTH wide.
    Raises UsageError for another shape or count of labels, NumericalError for a non-finite item.
    """
    a = pixels(x, levels)
    columns = min(len(a), columns or math.ceil(math.sqrt(len(a))))
    if labels is not None and len(labels) != len(a):
        raise UsageError(f"{len(labels)} labels cannot stand under {len(a)} images")
    _save(_grid(a, columns, scale, labels), path)


def write_pngs(x: ArrayLike, folder: Path | str, levels: int | None) -> None:
    """Write x `(N, C, H, W)` in source units as 000000.png, 000001.png, … of their own size; raises as `image_grid`."""
    from PIL import Image

    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, a in enumerate(pixels(x, levels)):
        Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a).save(Path(folder) / f"{i:06d}.png")


def strip(frames: ArrayLike, path: Path | str, levels: int | None) -> None:
    """Write frames `(F, N, C, H, W)` in source units as one PNG, a row for each item, a column for each frame."""
    frames = np.asarray(frames)
    a = pixels(frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:]), levels)
    _save(_grid(a, len(frames)), path)


def gif(frames: ArrayLike, path: Path | str, levels: int | None, milliseconds: int = 100) -> None:
    """Write frames `(F, N, C, H, W)` in source units as an endless GIF of grids; the last frame stays 1.5 s longer."""
    frames = np.asarray(frames)
    a = pixels(frames.reshape(-1, *frames.shape[2:]), levels).reshape(*frames.shape[:2], *_hwc(frames.shape[2:]))
    write_gif([_grid(f, math.ceil(math.sqrt(len(f)))) for f in a], path, milliseconds)


def pixels(x: ArrayLike, levels: int | None) -> np.ndarray:
    """Turn x `(N, C, H, W)` into 8 bits `(N, H, W, C)`: `255 k / (levels - 1)`, clipped and rounded.

    levels None takes the least value of x to 0 and the greatest to 255.  Raises as `image_grid`.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 4 or not is_image(x.shape[1:]) or len(x) == 0:
        raise UsageError(f"images need the shape (N, 1 or 3, H, W), not {x.shape}")
    bad = ~np.isfinite(x).all(axis=(1, 2, 3))
    if bad.any():
        raise NumericalError(f"image {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(x)} are not)")
    low, high = (0, levels - 1) if levels is not None else (x.min(), x.max())
    # A constant picture has no range; any width then gives 0.
    scaled = (x - low) * (255 / ((high - low) or 1))
    return scaled.clip(0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def _hwc(shape: Sequence[int]) -> tuple[int, int, int]:
    return shape[1], shape[2], shape[0]


def _grid(a: np.ndarray, columns: int, scale: int | None = None, labels: Sequence[str] | None = None):
    from PIL import Image, ImageDraw, ImageFont

    n, h, w, c = a.shape
    scale = scale or max(1, math.ceil(GRID_WIDTH / (columns * w)))
    line = max(1, scale // 4)
    text = 14 if labels is not None else 0
    cell_h, cell_w = h * scale + text + line, w * scale + line
    rows = math.ceil(n / columns)
    canvas = np.full((rows * cell_h + line, columns * cell_w + line, c), SEPARATOR, np.uint8)
    corners = [(line + i // columns * cell_h, line + i % columns * cell_w) for i in range(n)]
    for (top, left), item in zip(corners, a, strict=True):
        canvas[top : top + h * scale, left : left + w * scale] = item.repeat(scale, axis=0).repeat(scale, axis=1)
    grid = Image.fromarray(canvas[..., 0] if c == 1 else canvas)
    if labels is not None:
        draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
        for (top, left), label in zip(corners, labels, strict=True):
            draw.text((left + 2, top + h * scale), str(label), fill="white", font=font)
    return grid


def _save(grid, path: Path | str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, format="PNG")
