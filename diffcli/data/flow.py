"""Flow plots: the paths of points from the prior to the data."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.errors import NumericalError, UsageError
from diffcli.writing import whole

DPI = 150
START, END, BEHIND = "#0072B2", "#D55E00", "0.8"  # of Okabe & Ito, told apart by all eyes
LINE = dict(color="0.25", linewidth=0.5, alpha=0.45, solid_capstyle="round")
INK = 100  # lengths of lines, in sides of the picture, before it turns black
DOT = dict(linestyle="none", marker="o", markeredgewidth=0.3, markeredgecolor="white")


def flow(
    paths: ArrayLike,
    clock: ArrayLike,
    path: Path | str,
    behind: ArrayLike | None = None,
    clock_name: str = "lam",
    over: str = "",
) -> None:
    """Write the paths `(F, N, *S)` of N points as one PNG: lines from blue starts to orange ends, `behind` `(M, *S)` in grey.

    Of points of more than two coordinates the first two are drawn.  Points of one are drawn over `clock` `(F,)`, increasing,
    beside the histograms of where they end and of `behind`.  Of long winding paths, those of an SDE, only as many are drawn as
    leave the picture readable; all starts and ends are.  over: what the axes' names end with, a unit or a divisor.
    Raises UsageError for shapes that do not fit, NumericalError for a path that is not finite.
    """
    paths = np.asarray(paths, dtype=np.float64)
    if paths.ndim < 3 or paths.size == 0 or len(paths) != len(np.asarray(clock)):
        raise UsageError(f"paths have shape {paths.shape}, not ({len(np.asarray(clock))}, N, *S) with N >= 1")
    paths = paths.reshape(*paths.shape[:2], -1)
    bad = ~np.isfinite(paths).all(axis=(0, 2))
    if bad.any():
        raise NumericalError(f"path {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(bad)} are not)")
    behind = None if behind is None else np.asarray(behind, dtype=np.float64).reshape(len(behind), -1)
    if behind is not None and behind.shape[1] != paths.shape[2]:
        raise UsageError(f"paths of {paths.shape[2]} coordinates cannot lie on points of {behind.shape[1]}")
    draw = _lines if paths.shape[2] == 1 else _plane
    figure = draw(paths, np.asarray(clock, dtype=np.float64), behind, clock_name, over)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def _figure(size: tuple[float, float], columns: int, **more):
    # Figure and Agg without pyplot: no global state, no display, no figures left open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False, **more)[0]


def _plane(paths, clock, behind, clock_name, over):
    figure, (ax,) = _figure((5.2, 5.6), 1)
    if behind is not None:
        ax.plot(*behind[:, :2].T, ".", color=BEHIND, markersize=3, markeredgewidth=0, label="data", zorder=1)
    plane = paths[..., :2]
    parts = [plane.reshape(-1, 2), *([] if behind is None else [behind[:, :2]])]
    low, high = np.min([a.min(0) for a in parts], 0), np.max([a.max(0) for a in parts], 0)
    centre, half = (low + high) / 2, 0.53 * (high - low).max() or 1.0
    count = _few(plane / (2 * half))
    ax.plot(plane[:, :count, 0], plane[:, :count, 1], **LINE, label=_of(count, plane.shape[1]), zorder=2)
    ax.plot(*plane[0].T, **DOT, color=START, markersize=3.2, label="start", zorder=3)
    ax.plot(*plane[-1].T, **DOT, color=END, markersize=4, label="end", zorder=4)
    ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")
    more = f" (first 2 of {paths.shape[2]} coordinates)" if paths.shape[2] > 2 else ""
    ax.set(xlabel=f"x1{over}{more}", ylabel=f"x2{over}")
    _legend(figure)
    return figure


def _lines(paths, clock, behind, clock_name, over):
    figure, (ax, side) = _figure((7.2, 4.2), 2, sharey=True, width_ratios=(4, 1))
    paths = paths[..., 0]
    wide = np.ptp(clock) or 1.0, np.ptp(paths) or 1.0
    count = _few(np.stack([np.broadcast_to(clock[:, None], paths.shape) / wide[0], paths / wide[1]], -1))
    ax.plot(clock, paths[:, :count], **LINE, label=_of(count, paths.shape[1]))
    ax.plot(np.full(paths.shape[1], clock[0]), paths[0], **DOT, color=START, markersize=3.2, label="start", zorder=3)
    ax.plot(np.full(paths.shape[1], clock[-1]), paths[-1], **DOT, color=END, markersize=4, label="end", zorder=4)
    both = paths[-1] if behind is None else np.concatenate([paths[-1], behind[:, 0]])
    bins = np.linspace(both.min(), both.max(), 41) if np.ptp(both) else 10
    if behind is not None:
        side.hist(behind[:, 0], bins, density=True, orientation="horizontal", color=BEHIND, label="data")
    side.hist(paths[-1], bins, density=True, orientation="horizontal", histtype="step", color=END)
    ax.set(xlabel=clock_name, ylabel=f"x{over}")
    side.set(xlabel="density")
    _legend(figure)
    return figure


def _few(paths: np.ndarray) -> int:
    """How many of the paths `(F, N, 2)`, in sides of the picture, are within INK."""
    spent = np.linalg.norm(np.diff(paths, axis=0), axis=2).sum(0).cumsum()
    return max(1, int((spent <= INK).sum()))


def _of(count: int, all_of: int) -> list[str]:
    """The labels of the lines: only the first is in the legend."""
    return [f"path ({count} of {all_of})" if count < all_of else "path", *["_"] * (count - 1)]


def _legend(figure) -> None:
    legend = figure.legend(loc="outside upper center", ncols=4, frameon=False)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_markersize"):
            handle.set(markersize=7, linewidth=1.2, alpha=1)
