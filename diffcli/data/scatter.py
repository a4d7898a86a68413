"""Pictures of points: histograms in one dimension, scatters of the first two coordinates in more."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.gif import write_gif
from diffcli.errors import NumericalError, UsageError
from diffcli.writing import whole

MOST_POINTS = 20000  # more only blacken the picture and slow its drawing
MOST_PANELS = 8
MOST_WORDS = 20  # with a colour of their own


def scatter(sets: Mapping[str, ArrayLike], path: Path | str, words: Sequence[str] | None = None) -> None:
    """Write sets of points, each `(N, *S)`, as one PNG: side by side on common axes, histograms overlaid where d = 1.

    words: point i of each set is one of `words[i mod K]`; each word has a colour, or a histogram.
    Raises UsageError where there is no set or their dimensions differ, NumericalError for a non-finite point.
    """
    points = {name: _points(name, x) for name, x in sets.items()}
    dimensions = {x.shape[1] for x in points.values()}
    if len(dimensions) != 1:
        raise UsageError(f"a scatter needs sets of points of one dimension, not of {sorted(dimensions) or 'no set'}")
    if dimensions == {1}:
        if words and len(set(words)) <= MOST_WORDS:
            points = {f"{name}, {w}": x[rows] for name, x in points.items() for w, rows in _rows(words, len(x)).items()}
        with whole(path) as file:
            _histograms(points).savefig(file, dpi=100)
        return
    figure, axes = _panels(len(points))
    limits = _limits(list(points.values()))
    for ax, (name, x), limit in zip(axes, points.items(), limits, strict=True):
        _draw(ax, x, limit, words)
        ax.set_title(f"{name} (n = {len(x)})")
    with whole(path) as file:
        figure.savefig(file, dpi=100)


def scatter_frames(frames: ArrayLike, heads: Sequence[str], path: Path | str) -> None:
    """Write frames `(F, N, *S)` as one PNG with at most 8 panels, evenly spaced from the first to the last; heads: F titles."""
    frames = _frames(frames)
    shown = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MOST_PANELS)).round().astype(int))
    figure, axes = _panels(len(shown))
    for ax, i, limit in zip(axes, shown, _limits([frames[i] for i in shown]), strict=True):
        _draw(ax, frames[i], limit)
        ax.set_title(heads[i])
    with whole(path) as file:
        figure.savefig(file, dpi=100)


def scatter_gif(frames: ArrayLike, heads: Sequence[str], path: Path | str, milliseconds: int = 100) -> None:
    """Write frames `(F, N, *S)` as an endless GIF; heads: F titles; the last frame stays 1.5 s longer."""
    from PIL import Image

    frames = _frames(frames)
    pictures = []
    figure, (ax,) = _panels(1)
    for i, (x, limit) in enumerate(zip(frames, _limits(list(frames)), strict=True)):
        ax.clear()
        _draw(ax, x, limit)
        ax.set_title(heads[i])
        figure.canvas.draw()
        # The first layout stays, so that the axes do not jump from frame to frame.
        figure.set_layout_engine("none")
        pictures.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()))
    write_gif(pictures, path, milliseconds)


def _points(name: str, x: ArrayLike) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim < 2 or x.size == 0:
        raise UsageError(f"{name} has shape {x.shape}, not (N, *S) with N >= 1")
    x = x.reshape(len(x), -1)
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise NumericalError(f"{name}: item {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(x)} are not)")
    return x


def _frames(frames: ArrayLike) -> np.ndarray:
    return np.stack([_points(f"frame {i}", x) for i, x in enumerate(np.asarray(frames))])


def _limits(parts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centre and half-width of the axes of each part: common ones, unless a part is over 4 times wider than another,
    as the noise of a variance-exploding path is; a common axis would then shrink the data to a dot."""
    boxes = [(x.min(0), x.max(0)) for x in parts]
    low, high = np.min([box[0] for box in boxes], 0), np.max([box[1] for box in boxes], 0)
    widths = [(box[1] - box[0])[:2].max() for box in boxes]
    if max(widths) <= 4 * min(widths):
        boxes = [(low, high)] * len(parts)
    return [((a + b) / 2, np.full_like(a, 0.53 * (b - a)[:2].max() or 1.0)) for a, b in boxes]


def _rows(words: Sequence[str], n: int) -> dict[str, np.ndarray]:
    """The points of each word, of those that there are."""
    said = np.array(words)[np.arange(n) % len(words)]
    return {word: rows for word in dict.fromkeys(words) if len(rows := (said == word).nonzero()[0])}


def _colour(k: int, count: int):
    from matplotlib import colormaps

    return colormaps["tab10" if count <= 10 else "tab20"](k)


def _draw(ax, x: np.ndarray, limit: tuple[np.ndarray, np.ndarray], words: Sequence[str] | None = None) -> None:
    centre, half = limit
    ax.set_xlim(centre[0] - half[0], centre[0] + half[0])
    if x.shape[1] == 1:
        ax.hist(x[:, 0], bins=np.linspace(centre[0] - half[0], centre[0] + half[0], 81), density=True, color="C0")
        ax.set(xlabel="x", ylabel="density")
        return
    ax.set_ylim(centre[1] - half[1], centre[1] + half[1])
    ax.set_aspect("equal")
    few = len(x) < 2000
    style = dict(markersize=4 if few else 2.5, alpha=0.8 if few else 0.4, markeredgewidth=0)
    x = x[:MOST_POINTS]
    if words and 1 < len(set(words)) <= MOST_WORDS:
        for k, (word, rows) in enumerate(_rows(words, len(x)).items()):
            ax.plot(*x[rows, :2].T, ".", label=word, color=_colour(k, len(set(words))), **style)
        ax.legend(fontsize=7, markerscale=2)
    else:
        ax.plot(*x[:, :2].T, ".", **style)
    more = f" (first 2 of {x.shape[1]} coordinates)" if x.shape[1] > 2 else ""
    ax.set(xlabel=f"x1{more}", ylabel="x2")


def _histograms(points: dict[str, np.ndarray]):
    figure, (ax,) = _panels(1)
    both = np.concatenate(list(points.values()))
    bins = np.linspace(both.min(), both.max(), 81) if np.ptp(both) else 10
    for name, x in points.items():
        ax.hist(x[:, 0], bins=bins, density=True, histtype="step", label=f"{name} (n = {len(x)})")
    ax.set(xlabel="x", ylabel="density")
    ax.legend()
    return figure


def _panels(count: int):
    # Figure and Agg without pyplot: no global state, no display, no figures left open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]
