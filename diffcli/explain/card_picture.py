"""The picture of a card: its figures on their scales, samples beside data, and the protocol in words."""

from pathlib import Path

import numpy as np

from diffcli.data.pictures import is_image, pixels
from diffcli.explain.figures import COLOURS, DPI
from diffcli.metrics.card import Card, Figure
from diffcli.metrics.card_text import ARROWS, rounded

ROW = 0.42  # inches a figure
SHOWN = 48  # images of each kind
POINTS = 5000
LINE = 160  # characters of the words below


def draw(card: Card, samples: np.ndarray, data: np.ndarray, levels: int | None, path: Path) -> None:
    """Write the card as a PNG: its figures, some samples and data `(n, *S)` in source units, and the protocol in words."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    words = _words(card)
    table, shown, foot = ROW * (len(card.figures) + 1), 3.6, 0.17 * (len(words) + 1)
    figure = Canvas(figsize=(11, table + shown + foot + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, middle, below = figure.subfigures(3, 1, height_ratios=[table, shown, foot])
    figure.suptitle(card.title, fontsize=12)
    _figures(above, card)
    left, right = middle.subplots(1, 2)
    if is_image(samples.shape[1:]):
        for ax, x, name in ((left, samples, "samples"), (right, data, "data")):
            _images(ax, x[:SHOWN], levels)
            ax.set_title(f"{name} (the first {min(len(x), SHOWN)})", fontsize=10)
    else:
        _points(left, right, samples[:POINTS], data[:POINTS])
    below.text(0.01, 0.97, "\n".join(words), va="top", fontsize=7.5, family="monospace", color="0.2")
    figure.savefig(path, dpi=DPI)


def _figures(figure, card: Card) -> None:
    """One row a measure: its name, mean ± sd, the floor, and both with every repeat on a scale."""
    grid = figure.add_gridspec(len(card.figures) + 1, 3, width_ratios=[3.4, 3.6, 4], wspace=0.02, hspace=0.1)
    heads = (
        "measure (↓ lower is better, ↑ higher)",
        "samples                    real items",
        "dots: repeats, bar: mean ± sd, grey: real items",
    )
    for column, head in enumerate(heads):
        ax = figure.add_subplot(grid[0, column])
        ax.set_axis_off()
        ax.text(
            *((0.5, 0.2) if column else (0, 0.2)), head, ha="center" if column else "left", fontsize=8.5, color="0.35"
        )
    for i, f in enumerate(card.figures, 1):
        name, number, scale = (figure.add_subplot(grid[i, j]) for j in range(3))
        for ax in (name, number):
            ax.set_axis_off()
        mark = "  !" if f.warning else ""
        name.text(0, 0.5, f"{f.label} {ARROWS[f.better]}{mark}", va="center", fontsize=10)
        number.text(0.47, 0.5, rounded(f.mean, f.sd), va="center", ha="right", fontsize=10, weight="bold")
        number.text(0.98, 0.5, rounded(f.floor_mean, f.floor_sd), va="center", ha="right", fontsize=9, color="0.35")
        _scale(scale, f)


def _scale(ax, f: Figure) -> None:
    ax.set(ylim=(-1, 1), yticks=[])
    ax.spines[["left", "right", "top"]].set_visible(False)
    every = [*f.values, *f.floor, 0.0]
    for mean, sd in ((f.mean, f.sd), (f.floor_mean, f.floor_sd)):
        every += [mean - sd, mean + sd] if sd is not None else []
    if f.floor:
        sd = f.floor_sd or 0.0
        ax.axvspan(f.floor_mean - sd, f.floor_mean + sd, color="0.85", zorder=0)
        ax.plot(f.floor, [0] * len(f.floor), "|", color="0.55", markersize=12)
    if f.sd is not None:
        ax.errorbar([f.mean], [0], xerr=[f.sd], color=COLOURS[0], capsize=4, linewidth=1.6)
    ax.plot(f.values, [0] * len(f.values), "o", color=COLOURS[1], markersize=4, alpha=0.8, zorder=3)
    low, high = min(every), max(every)
    room = 0.06 * (high - low) or 1.0
    ax.set_xlim(low - room, high + room)
    ax.tick_params(labelsize=7, length=2, pad=1)
    ax.locator_params(axis="x", nbins=5)


def _images(ax, x: np.ndarray, levels: int | None) -> None:
    """A sheet with white lines between the images."""
    a = pixels(x, levels)
    n, h, w, c = a.shape
    columns = min(n, 8)
    rows = -(-n // columns)
    sheet = np.full((rows, columns, h + 1, w + 1, c), 255, np.uint8)
    sheet.reshape(-1, h + 1, w + 1, c)[:n, :h, :w] = a
    whole = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * (h + 1), columns * (w + 1), c)
    ax.imshow(whole.repeat(3 // c, axis=2), interpolation="nearest")
    ax.set_axis_off()


def _points(left, right, samples: np.ndarray, data: np.ndarray) -> None:
    """Histograms where d = 1, else the first two coordinates, on the axes of the data."""
    samples, data = samples.reshape(len(samples), -1), data.reshape(len(data), -1)
    pairs = ((left, samples, "samples", COLOURS[1]), (right, data, "data", COLOURS[0]))
    low, high = data.min(0), data.max(0)
    room = 0.1 * (high - low) + 1e-9
    for ax, x, name, colour in pairs:
        if x.shape[1] == 1:
            ax.hist(x[:, 0], bins=np.linspace(low[0] - room[0], high[0] + room[0], 61), density=True, color=colour)
        else:
            ax.plot(x[:, 0], x[:, 1], ".", markersize=2.5, markeredgewidth=0, color=colour, alpha=0.6, rasterized=True)
            ax.set(ylim=(low[1] - room[1], high[1] + room[1]))
        ax.set(xlim=(low[0] - room[0], high[0] + room[0]))
        ax.set_title(f"{name} (the first {len(x)}{_coordinates(x)})", fontsize=10)
        ax.tick_params(labelsize=7)


def _coordinates(x: np.ndarray) -> str:
    return f"; coordinates 1 and 2 of {x.shape[1]}" if x.shape[1] > 2 else ""


def _words(card: Card) -> list[str]:
    """Notes, protocol, model and draw, broken into lines."""
    import textwrap

    from diffcli.metrics.card import flat
    from diffcli.metrics.card_text import notes

    lines = []
    for line in notes(card):
        lines += textwrap.wrap(line, LINE, subsequent_indent="  ")
    for head, node in (
        ("protocol", card.protocol),
        ("model", card.model),
        ("draw", card.draw),
        ("versions", card.versions),
    ):
        said = "  ".join(f"{key}={value}" for key, value in flat(node).items() if value is not None)
        lines += textwrap.wrap(f"{head}: {said}", LINE, subsequent_indent="  ")
    return lines
