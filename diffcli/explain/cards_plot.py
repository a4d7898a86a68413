"""The picture of cards side by side: a panel a measure, its mean ± sd in each card, and what real items give."""

from pathlib import Path

from diffcli.explain.figures import COLOURS, DPI, _figure
from diffcli.metrics.card import Card, not_told_apart
from diffcli.metrics.cards_table import heading, measures
from diffcli.writing import whole

COLUMNS = 3  # panels in a row


def plot(cards: dict[str, Card], path: Path) -> None:
    """Dots are repeats, bars mean ± sd, filled where it is the best or not told from it; grey is mean ± sd of real items."""
    found = measures(cards)
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure, axes = _figure(rows, columns, (4.2 * columns, rows * (0.9 + 0.3 * len(cards)) + 0.5), sharey=True)
    names = list(cards)
    for ax in axes.ravel()[len(found) :]:
        ax.set_axis_off()
    for ax, column in zip(axes.ravel()[: len(found)], found.values(), strict=True):
        best = not_told_apart(column)
        real = next((f for f in column.values() if f.floor), None)
        if real is not None:
            sd = real.floor_sd or 0.0
            ax.axvspan(real.floor_mean - sd, real.floor_mean + sd, color="0.82", zorder=0)
            ax.axvline(real.floor_mean, color="0.6", linewidth=0.8, zorder=0)
        for who, f in column.items():
            at, good = names.index(who), who in best
            ax.plot(f.values, [at] * len(f.values), ".", color="0.4", markersize=5, zorder=3)
            style = dict(color=COLOURS[0], markerfacecolor=COLOURS[0] if good else "white", markersize=7, capsize=4)
            ax.errorbar([f.mean], [at], xerr=None if f.sd is None else [f.sd], fmt="o", **style)
        ax.set_title(heading(column), fontsize=10)
        ax.grid(True, axis="x", color="0.92")
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
        ax.locator_params(axis="x", nbins=5)
    axes[0][0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    figure.suptitle("filled: the best, and what is not told from it (Welch, 5 %); grey: real items", fontsize=9)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)
