"""Pictures of image items: grids, single files, the denoising as a strip and as a film; points go to `scatter` and `flow`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.base import Data
from diffcli.data.gif import write_gif
from diffcli.data.scatter import scatter
from diffcli.errors import NumericalError, UsageError
from diffcli.writing import whole

MOST_COLUMNS, FEW = 32, 6  # with a word above each; fewer than these come several times
GRID_WIDTH = 640  # pixels at least: 8x8 digits are to be seen without zooming
STRIP_WIDTH = 1000  # of a strip, whose columns have words above
PART = 256  # images looked at at once
DPI = 128  # a power of 2, so that its size in inches is exact
SEPARATOR = 128  # grey, told from both a black and a white background


def picture(x: ArrayLike, path: Path | str, data: Data, words: Sequence[str] | None = None) -> None:
    """Write one picture of items x `(N, *S)` in source units: a grid where S is `(1|3, H, W)`, else a scatter.

    words: item i is one of `words[i mod K]`; each has its column, or its colour.
    """
    if is_image(np.shape(x)[1:]):
        more = {}
        if words is not None and 2 <= len(words) <= MOST_COLUMNS:
            again = max(1, math.isqrt(len(x)) // len(words)) if len(words) < FEW else 1  # no tower of 2 columns
            heads = [*words] * again
            more = {"columns": len(heads), "heads": heads[: len(x)]}
        image_grid(x, path, data.transform.levels, **more)
    else:
        scatter({data.units: x}, path, words)


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
    heads: Sequence[str] | None = None,
) -> None:
    """Write x `(N, C, H, W)` in source units as one PNG with thin separators, row by row.

    levels: as in `pixels`.  columns: images in a row, about √N if None.  labels: N words, one under each image.
    heads: a word above each column.  scale: pixels per pixel, nearest; if None the least that makes the grid GRID_WIDTH wide.
    Raises UsageError for another shape or count of labels, NumericalError for a non-finite item.
    """
    a = pixels(x, levels)
    columns = min(len(a), columns or math.ceil(math.sqrt(len(a))))
    if labels is not None and len(labels) != len(a):
        raise UsageError(f"{len(labels)} labels cannot stand under {len(a)} images")
    if heads is not None and len(heads) != columns:
        raise UsageError(f"{len(heads)} words cannot stand above {columns} columns")
    _save(_grid(a, columns, scale, labels, heads), path)


def write_pngs(x: ArrayLike, folder: Path | str, levels: int | None, names: Sequence[str] | None = None) -> None:
    """Write x `(N, C, H, W)` in source units as 000000.png, 000001.png, … (or by `names`) of their own size; raises as
    `image_grid`."""
    from PIL import Image

    Path(folder).mkdir(exist_ok=True)
    firsts = range(0, max(1, len(x)), PART)
    limits = _limits(x[first : first + PART] for first in firsts) if levels is None else None
    for i, a in (
        found for first in firsts for found in enumerate(pixels(x[first : first + PART], levels, limits), first)
    ):
        name = f"{i:06d}" if names is None else names[i]
        with whole(Path(folder) / f"{name}.png") as file:
            Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a).save(file)


def strip(rows: Mapping[str, ArrayLike], heads: Sequence[str], path: Path | str, levels: int | None) -> None:
    """Write named kinds of frames, each `(F, N, C, H, W)` in source units, as one PNG: N blocks of a row for each kind, F columns.

    heads: F words, one above each column.  Names and heads may hold mathtext.
    Raises UsageError where heads or kinds do not fit one another.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [np.asarray(frames) for frames in rows.values()]
    shape = kinds[0].shape
    if any(frames.shape != shape for frames in kinds) or len(heads) != shape[0]:
        raise UsageError(f"a strip of {len(heads)} columns needs frames of one shape, not {[a.shape for a in kinds]}")
    count, items, _, _, w = shape
    scale = max(1, math.ceil(STRIP_WIDTH / (count * w)))
    # one limit for all the pictures where levels do not set it
    a = pixels(np.stack(kinds, 1).transpose(2, 1, 0, 3, 4, 5).reshape(-1, *shape[2:]), levels)
    blocks = [np.asarray(_grid(block, count, scale)) for block in np.split(a, items)]
    gap = np.full((2 * scale, *blocks[0].shape[1:]), 255, np.uint8)
    canvas = np.concatenate([part for block in blocks for part in (block, gap)][:-1])
    height, width = canvas.shape[:2]
    left, top, edge = 44, 26, 4  # pixels around it
    outer = width + left + edge, height + top + edge
    figure = Figure(figsize=(outer[0] / DPI, outer[1] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    # the axes are the canvas to the pixel, so that nothing is resampled
    ax = figure.add_axes([left / outer[0], edge / outer[1], width / outer[0], height / outer[1]])
    colours = canvas if canvas.ndim == 3 else canvas[..., None].repeat(3, 2)
    ax.imshow(colours, interpolation="none", aspect="auto")
    cell = (width - 1) / count
    ax.set_xticks([(i + 0.5) * cell for i in range(count)], heads, fontsize=7)
    tall, block = blocks[0].shape[0] / len(kinds), blocks[0].shape[0] + len(gap)
    at = [n * block + (k + 0.5) * tall for n in range(items) for k in range(len(kinds))]
    ax.set_yticks(at, [*rows] * items, fontsize=9)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def gif(frames: ArrayLike, path: Path | str, levels: int | None, milliseconds: int = 100) -> None:
    """Write frames `(F, N, C, H, W)` in source units as an endless GIF of grids; the last frame stays 1.5 s longer."""
    frames = np.asarray(frames)
    a = pixels(frames.reshape(-1, *frames.shape[2:]), levels).reshape(*frames.shape[:2], *_hwc(frames.shape[2:]))
    write_gif([_grid(f, math.ceil(math.sqrt(len(f)))) for f in a], path, milliseconds)


def pixels(x: ArrayLike, levels: int | None, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Turn x `(N, C, H, W)` into 8 bits `(N, H, W, C)`: `255 k / (levels - 1)`, clipped and rounded.

    levels None takes the least value of x to 0 and the greatest to 255, or the `limits`.  Raises as `image_grid`.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 4 or not is_image(x.shape[1:]) or len(x) == 0:
        raise UsageError(f"images need the shape (N, 1 or 3, H, W), not {x.shape}")
    bad = ~np.isfinite(x).all(axis=(1, 2, 3))
    if bad.any():
        raise NumericalError(f"image {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(x)} are not)")
    low, high = (0, levels - 1) if levels is not None else limits or (x.min(), x.max())
    # A constant picture has no range; any width then gives 0.
    scaled = (x - low) * (255 / ((high - low) or 1))
    return scaled.clip(0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def _limits(parts: Iterable[ArrayLike]) -> tuple[float, float]:
    lows, highs = zip(
        *((a.min(), a.max()) for a in (np.asarray(part, dtype=np.float64) for part in parts)), strict=True
    )
    return min(lows), max(highs)


def _hwc(shape: Sequence[int]) -> tuple[int, int, int]:
    return shape[1], shape[2], shape[0]


def _grid(
    a: np.ndarray,
    columns: int,
    scale: int | None = None,
    labels: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
):
    from PIL import Image, ImageDraw, ImageFont

    n, h, w, c = a.shape
    scale = scale or max(1, math.ceil(GRID_WIDTH / (columns * w)))
    line = max(1, scale // 4)
    text = 14 if labels is not None else 0
    cell_h, cell_w = h * scale + text + line, w * scale + line
    rows = math.ceil(n / columns)
    top = 0 if heads is None else 16
    canvas = np.full((top + rows * cell_h + line, columns * cell_w + line, c), SEPARATOR, np.uint8)
    corners = [(top + line + i // columns * cell_h, line + i % columns * cell_w) for i in range(n)]
    for (top, left), item in zip(corners, a, strict=True):
        canvas[top : top + h * scale, left : left + w * scale] = item.repeat(scale, axis=0).repeat(scale, axis=1)
    grid = Image.fromarray(canvas[..., 0] if c == 1 else canvas)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    if heads is not None:
        for k, word in enumerate(heads):
            draw.text((line + k * cell_w + 2, 2), _fitting(word, w * scale - 2, font), fill="white", font=font)
    if labels is not None:
        for (top, left), label in zip(corners, labels, strict=True):
            draw.text((left + 2, top + h * scale), str(label), fill="white", font=font)
    return grid


def _fitting(word: str, width: int, font) -> str:
    """The word, cut where it is too wide."""
    if font.getlength(word) <= width:
        return word
    return next((f"{word[:n]}…" for n in range(len(word), 0, -1) if font.getlength(f"{word[:n]}…") <= width), word[:1])


def _save(grid, path: Path | str) -> None:
    with whole(path) as file:
        grid.save(file, format="PNG")
