"""Ways between points, drawn over the data they lie in."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.scatter import MOST_POINTS
from diffcli.writing import whole


def ways_picture(ways: ArrayLike, behind: ArrayLike, units: str, path: Path | str) -> None:
    """Write ways `(N, F, *S)` over items `(M, *S)`, both in source units, as one PNG of their first two coordinates.

    In one dimension the ways are drawn against their position from 0 (a) to 1 (b), the items along the left edge.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways, behind = np.asarray(ways, np.float64), np.asarray(behind, np.float64)[:MOST_POINTS]
    ways, behind = ways.reshape(*ways.shape[:2], -1), behind.reshape(len(behind), -1)
    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    if ways.shape[2] == 1:
        position = np.linspace(0, 1, ways.shape[1])
        ax.plot(np.zeros(len(behind)), behind[:, 0], "_", color="0.7", markersize=12, zorder=0)
        lines = [np.stack([position, way[:, 0]], 1) for way in ways]
        ax.set(xlabel="from a (0) to b (1)", ylabel="x")
    else:
        ax.plot(*behind[:, :2].T, ".", color="0.75", markersize=3, markeredgewidth=0, zorder=0, label=units)
        lines = [way[:, :2] for way in ways]
        ax.set_aspect("equal", adjustable="datalim")
        more = f" (first 2 of {ways.shape[2]} coordinates)" if ways.shape[2] > 2 else ""
        ax.set(xlabel=f"x1{more}", ylabel="x2")
    for i, line in enumerate(lines):
        ax.plot(*line.T, ".-", color=f"C{i % 10}", markersize=6, linewidth=1.2)
        for name, end in (("a", line[0]), ("b", line[-1])):
            ax.annotate(name, end, xytext=(5, 5), textcoords="offset points", fontsize=11, color=f"C{i % 10}")
    with whole(path) as file:
        figure.savefig(file, dpi=100)
