"""The picture of `diffcli compare`: error and distance over the evaluations they take."""

import math
from pathlib import Path

from diffcli.explain.comparison import Comparison
from diffcli.explain.figures import DPI, _figure
from diffcli.writing import whole

# Okabe & Ito's, told apart by all eyes, then again with other markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
APART = 0.25  # of two labels, in log(NFE)
KINDS = {"ode": "ODE —", "sde": "SDE – –", "score": "score ···"}
LINES = {"ode": "-", "sde": "--", "score": ":"}


def plot(found: Comparison, path: Path) -> None:
    """Error to the end of the PF-ODE (left), and sliced Wasserstein distance to the data (right), over NFE; both logarithmic."""
    errors = any(c.error is not None for c in found.cells)
    panels = (["error"] if errors else []) + ["sliced_wasserstein"]
    figure, axes = _figure(1, len(panels), (4.9 * len(panels) + 2.4, 4.8))
    titles = {
        "error": "error to the end of the PF-ODE",
        "sliced_wasserstein": "sliced Wasserstein distance to the data",
    }
    handles = {}
    for ax, what in zip(axes[0], panels, strict=True):
        for i, (name, kind) in enumerate(found.samplers.items()):
            cells = [c for c in found.cells if c.sampler == name and getattr(c, what) is not None]
            if not cells:
                continue
            style = dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[(i // len(COLOURS) + i) % len(MARKERS)])
            x, y = [c.nfe for c in cells], [max(getattr(c, what), 1e-300) for c in cells]
            (handles[name],) = ax.plot(x, y, LINES[kind], linewidth=1.4, markersize=5, alpha=0.9, label=name, **style)
        ax.set(xscale="log", yscale="log", xlabel="network evaluations a sample (NFE)")
        ax.set_title(titles[what], fontsize=11)
        _ticks(ax, found)
        ax.grid(True, which="major", color="0.9", linewidth=0.7)
        ax.set_axisbelow(True)
    _scales(axes[0], panels, found)
    order = [handles[name] for name in found.samplers if name in handles]
    title = "   ".join(KINDS[kind] for kind in KINDS if kind in found.samplers.values())
    figure.legend(handles=order, loc="outside right upper", fontsize=9, frameon=False, title=title, title_fontsize=9)
    figure.suptitle(found.title, fontsize=10)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def _scales(axes, panels: list[str], found: Comparison) -> None:
    """What the numbers are read on: how well the end is known, and how far two halves of the data are apart."""
    for ax, what in zip(axes, panels, strict=True):
        low, high = ax.get_ylim()
        if what == "error":
            if 3 * found.known_to > low:
                ax.axhspan(low, 3 * found.known_to, color="0.88", zorder=0)
                ax.set_ylim(low, high)
                ax.text(0.02, low, "less than is known", **_inside(ax))
            continue
        h, s = found.halves[what], found.noise[what]
        low = max(h - 2 * s, 0.1 * h)
        ax.axhspan(low, h + 2 * s, color="0.85", zorder=0)
        ax.text(0.02, low, "two halves of the data (± 2 sd)", **_inside(ax))


def _inside(ax) -> dict:
    """Where and how a band is named: at its lower edge, on the left."""
    return dict(transform=ax.get_yaxis_transform(), va="bottom", fontsize=8, color="0.3")


def _ticks(ax, found: Comparison) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    taken = list(found.budgets)
    for nfe in sorted(c.nfe for c in found.adaptive() if c.nfe):
        if all(abs(math.log(nfe / other)) > APART for other in taken):
            taken.append(nfe)
    ax.xaxis.set_major_locator(FixedLocator(taken))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
