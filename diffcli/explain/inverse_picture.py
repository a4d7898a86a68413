"""The one picture of an inverse problem: what was measured, the samples, their mean and their deviation."""

import math
from pathlib import Path

import numpy as np

from diffcli.data.pictures import is_image, pixels
from diffcli.explain.figures import DPI
from diffcli.writing import whole

INPUTS, SAMPLES = 12, 8  # rows, and samples in a row
CELL = 96  # pixels of a picture at least
HIDDEN = 128  # grey, where nothing is known


def inverse_pictures(samples, original, measured, known, path: Path, levels: int | None) -> None:
    """Write a PNG with a row an input: original, measured, samples, their mean, their pixel-wise standard deviation.

    samples (N, each, C, H, W), original (N, C, H, W) or None, measured (N, *M) in source units; known (C, H, W) bool of a mask.
    A measurement that is no picture has no column.  The deviation is r.m.s. over channels, on one scale for all rows, up to
    its 99.5th percentile, above which it is white.
    """
    from matplotlib import colormaps

    shown = samples[:INPUTS, :SAMPLES]
    deviation = np.sqrt(samples[:INPUTS].var(1, ddof=min(1, samples.shape[1] - 1)).mean(1))  # (N, H, W)
    most = np.quantile(deviation, 0.995)
    parts: list[tuple[list[str], np.ndarray]] = []
    first, heads = [], []
    if original is not None:
        first.append(_rgb(original[: len(shown)], levels))
        heads.append("original")
    if is_image(measured.shape[1:]):
        first.append(_measured(measured[: len(shown)], known, shown.shape[-2:], levels))
        heads.append("measured")
    if first:
        parts.append((heads, np.stack(first, 1)))
    count = shown.shape[1]
    drawn = _rgb(shown.reshape(-1, *shown.shape[2:]), levels).reshape(len(shown), count, *shown.shape[-2:], 3)
    parts.append(([f"sample {j + 1}" for j in range(count)], drawn))
    colours = (colormaps["magma"]((deviation / (most or 1.0)).clip(0, 1))[..., :3] * 255).round().astype(np.uint8)
    mean = _rgb(samples[:INPUTS].mean(1), levels)
    parts.append(([f"mean of {samples.shape[1]}", f"sd, 0 – {most:.3g}"], np.stack([mean, colours], 1)))
    _draw(parts, path)


def _rgb(x: np.ndarray, levels: int | None) -> np.ndarray:
    a = pixels(x, levels)
    return a.repeat(3, -1) if a.shape[-1] == 1 else a


def _measured(y: np.ndarray, known: np.ndarray | None, size: tuple[int, int], levels: int | None) -> np.ndarray:
    """The measurement at the size of the items, each of its pixels a block."""
    a = _rgb(y, levels)
    if known is not None:
        a = np.where(known.any(0)[None, :, :, None], a, np.uint8(HIDDEN))
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, a.shape[1:3], strict=True))
    return a[:, rows][:, :, columns]


def _draw(parts: list[tuple[list[str], np.ndarray]], path: Path) -> None:
    """Blocks of columns (N, columns, H, W, 3) beside each other, with words above each column; nothing is resampled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = parts[0][1].shape[2:4]
    scale = max(1, math.ceil(CELL / width))
    gap, wide = 3, 14  # pixels between pictures, and between blocks
    tall, broad = height * scale + gap, width * scale + gap
    columns = sum(len(heads) for heads, _ in parts)
    rows = len(parts[0][1])
    canvas = np.full((rows * tall - gap, columns * broad - gap + wide * (len(parts) - 1), 3), 255, np.uint8)
    left, at, words = 0, [], []
    for heads, block in parts:
        big = block.repeat(scale, 2).repeat(scale, 3)
        for j, head in enumerate(heads):
            for i in range(rows):
                canvas[i * tall : i * tall + height * scale, left : left + width * scale] = big[i, j]
            at.append(left + width * scale / 2)
            words.append(head)
            left += broad
        left += wide
    top, edge = 22, 4
    outer = canvas.shape[1] + 2 * edge, canvas.shape[0] + top + edge
    figure = Figure(figsize=(outer[0] / DPI, outer[1] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.figimage(canvas, edge, edge, origin="upper")
    for x, word in zip(at, words, strict=True):
        figure.text((edge + x) / outer[0], 1 - top / 2 / outer[1], word, ha="center", va="center", fontsize=7)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def inverse_points(samples, original, measured, known, path: Path, behind=None) -> None:
    """Write a scatter an input of samples (N, each, *S) in the first two coordinates, histograms of one coordinate.

    A cross is the original (N, *S), a line a coordinate that `known` (*S) says is known, a plus the mean, and grey are data
    (M, *S) behind them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    flat = samples[:INPUTS].reshape(min(len(samples), INPUTS), samples.shape[1], -1)
    count, columns = len(flat), min(4, len(flat))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=flat.shape[2] > 1).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    same = measured.shape[1:] == samples.shape[2:]
    y = measured.reshape(len(measured), -1)
    for i, (ax, x) in enumerate(zip(axes[:count], flat, strict=True)):
        if behind is not None and x.shape[1] > 1:
            ax.plot(*np.reshape(behind, (len(behind), -1))[:, :2].T, ".", color="0.85", markersize=2, zorder=0)
        _panel(ax, x, None if original is None else original[i].reshape(-1))
        for j in range(min(2, x.shape[1])) if same else ():
            if known is None or known.reshape(-1)[j]:
                (ax.axvline if j == 0 else ax.axhline)(y[i, j], color="0.5", linewidth=0.8, linestyle="--", zorder=0)
        ax.set_title(f"input {i + 1}", fontsize=9)
    figure.suptitle("samples, their mean +, the original ×, measured coordinates - -", fontsize=9)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def _panel(ax, x: np.ndarray, original: np.ndarray | None) -> None:
    mark = dict(markersize=9, linestyle="none", markeredgewidth=1.8)
    if x.shape[1] == 1:
        ax.hist(x[:, 0], bins=min(50, max(5, len(x) // 4)), color="C0")
        ax.axvline(x.mean(), color="C1")
        if original is not None:
            ax.axvline(original[0], color="k")
        return
    ax.plot(x[:, 0], x[:, 1], ".", color="C0", alpha=0.7, markersize=6, markeredgewidth=0)
    ax.plot(*x[:, :2].mean(0), "+", color="C1", **mark)
    if original is not None:
        ax.plot(*original[:2], "x", color="k", **mark)
    more = f" (of {x.shape[1]})" if x.shape[1] > 2 else ""
    ax.set(xlabel=f"x1{more}", ylabel="x2")
