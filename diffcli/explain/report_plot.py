"""The picture of `diffcli report`: a panel a command, its figure against what was varied."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffcli.explain.compare_plot import COLOURS, MARKERS
from diffcli.explain.figures import DPI, _figure
from diffcli.writing import whole

LINES = 10  # more are dots in order, not lines
MOST = 40  # rows of dots; the best of more are drawn
WIDE = 20  # a positive axis that spans a larger ratio is logarithmic
LONGEST = 60  # of what is said of a run; one that was set in more ways goes by its name
BARS = {"nll": "one standard error", "train": "one standard error", "evaluate": "sd of repeats"}
REPEATED = "seed"  # a setting that repeats a run: its values are drawn as dots around their mean


@dataclass(frozen=True)
class Point:
    """A run: how it was set, its figure, and the error of that where it has one."""

    name: str
    settings: dict[str, object]
    value: float
    error: float | None


@dataclass(frozen=True)
class Panel:
    """Runs of one command, best first.  written: how a person writes a value of each setting.

    compares: whether the figure means the same for all of them.
    """

    command: str
    figure: str
    better: str
    varied: list[str]
    points: list[Point]
    written: dict[str, Callable[[object], str]]
    compares: bool = True

    def said(self, point: Point, keys: list[str]) -> str:
        """`sde=VP optim.lr=0.001`, or the run's name where nothing was varied."""
        text = " ".join(f"{key}={self.written[key](point.settings[key])}" for key in keys)
        return text if 0 < len(text) <= LONGEST else point.name


def plot(panels: list[Panel], path: Path) -> None:
    """Over a number that was varied a line for each choice of the rest; else the runs one below the other, best first."""
    axes_of = [axis_of(panel) for panel in panels]
    heights = [4.2 if axis else 1.3 + 0.27 * min(len(_rows(p)), MOST) for p, axis in zip(panels, axes_of, strict=True)]
    figure, axes = _figure(len(panels), 1, (8.4, sum(heights)), gridspec_kw={"height_ratios": heights})
    for (ax,), panel, axis in zip(axes, panels, axes_of, strict=True):
        (_lines(ax, panel, axis) if axis else _dots(ax, panel))
        bars = BARS.get(panel.command) if any(point.error for point in panel.points) else None
        bars = f"; bars: ± {bars}" if bars else ""
        meaning = f"{panel.better} is better" if panel.compares else "of each run's own loss: not comparable"
        seeds = "; small: each seed" if len(_rows(panel)) < len(panel.points) else ""
        ax.set_title(f"{panel.command}: {panel.figure} ({meaning}{bars}{seeds})", fontsize=10)
        ax.grid(True, color="0.92")
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def axis_of(panel: Panel) -> str | None:
    """The varied number that the figure is drawn over: the one of most values, of three or more; None where lines say nothing."""
    counts = {}
    for key in panel.varied:
        values = {p.settings[key] if _number(p.settings[key]) else None for p in panel.points}
        if key != REPEATED and None not in values and len(values) >= 3:
            counts[key] = len(values)
    axis = max(counts, key=counts.get, default=None)
    if axis is None or len(_groups(panel, axis)) > LINES or len(panel.points) < 2 * len(_groups(panel, axis)):
        return None
    return axis


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _groups(panel: Panel, axis: str) -> dict[str, list[Point]]:
    """The points of each line, by what is said of it."""
    rest = [key for key in panel.varied if key not in (axis, REPEATED)]
    found: dict[str, list[Point]] = {}
    for point in panel.points:
        found.setdefault(panel.said(point, rest) if rest else "", []).append(point)
    return found


def _lines(ax, panel: Panel, axis: str) -> None:
    groups = _groups(panel, axis)
    for i, (name, points) in enumerate(sorted(groups.items())):
        style = dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=5)
        at: dict[float, list[Point]] = {}
        for point in sorted(points, key=lambda p: p.settings[axis]):
            at.setdefault(point.settings[axis], []).append(point)
        means = [sum(p.value for p in there) / len(there) for there in at.values()]
        repeated = any(len(there) > 1 for there in at.values())
        errors = [there[0].error or 0.0 for there in at.values()]
        errors = None if repeated or not any(errors) else errors
        ax.errorbar(list(at), means, yerr=errors, capsize=3, linewidth=1.3, label=name or None, **style)
        if repeated:
            ax.plot([p.settings[axis] for p in points], [p.value for p in points], ".", color=style["color"], alpha=0.6)
    ax.set(xlabel=axis, ylabel=panel.figure)
    ax.set_xscale("log" if _wide([p.settings[axis] for p in panel.points]) else "linear")
    ax.set_yscale("log" if _wide([p.value for p in panel.points]) else "linear")
    if len(groups) > 1:
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _rows(panel: Panel) -> list[tuple[str, list[Point]]]:
    """What is said of each way that runs were set, and its points, in the order of their means."""
    keys = [key for key in panel.varied if key != REPEATED] or panel.varied
    found: dict[tuple, list[Point]] = {}
    for point in panel.points:
        found.setdefault(tuple(repr(point.settings[key]) for key in keys) or point.name, []).append(point)
    rows = [(panel.said(there[0], keys), there) for there in found.values()]
    return sorted(rows, key=lambda row: _mean(row[1]), reverse=panel.better == "higher")


def _mean(points: list[Point]) -> float:
    return sum(p.value for p in points) / len(points)


def _dots(ax, panel: Panel) -> None:
    """A row for each way that runs were set; runs that only repeat one are dots around their mean."""
    found = _rows(panel)
    rows = found[:MOST]
    for i, (_, there) in enumerate(rows):
        error = [there[0].error] if len(there) == 1 and there[0].error else None
        ax.errorbar([_mean(there)], [i], xerr=error, fmt="o", color=COLOURS[0], markersize=6, capsize=4)
        if len(there) > 1:
            ax.plot([p.value for p in there], [i] * len(there), ".", color=COLOURS[0], alpha=0.6)
    ax.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows])
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=panel.figure)
    ax.set_xscale("log" if _wide([p.value for _, there in rows for p in there]) else "linear")
    if len(found) > MOST:
        ax.set_ylabel(f"the best {MOST} of {len(found)}")


def _wide(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > WIDE * min(values)
