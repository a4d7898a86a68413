"""The picture of a card: its figures on their scales, samples beside data, and the protocol in words."""

from pathlib import Path

import numpy as np

from diffcli.data.pictures import is_image, pixels
from diffcli.explain.figures import COLOURS, DPI
from diffcli.metrics.card import Card, Figure, flat
from diffcli.metrics.card_text import ARROWS, notes, rounded, rows
from diffcli.writing import whole

WIDTH, EDGE = 11.0, 0.15  # inches
HEAD, ROW, WORDS, MIDDLE = 0.5, 0.42, 0.15, 4.0  # heights of the title, a figure, a line of words, the samples
SHOWN = 48  # images of each kind
POINTS = 5000
LINE = 165  # characters of the words below


class _Page:
    """A figure whose parts are placed in inches from its upper left corner; a layout engine would take most of the time."""

    def __init__(self, height: float):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        self.height, self.figure = height, Canvas(figsize=(WIDTH, height))
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float):
        """Axes with their upper left corner there."""
        box = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **style) -> None:
        """Words whose middle is that far from the top, unless `va` says otherwise."""
        self.figure.text(left / WIDTH, 1 - top / self.height, words, **{"va": "center", **style})


def draw(card: Card, samples: np.ndarray, data: np.ndarray, levels: int | None, path: Path) -> None:
    """Write the card as a PNG: its figures, some samples and data `(n, *S)` in source units, and the protocol in words."""
    words = _words(card)
    table = HEAD + ROW * (len(card.figures) + 1)
    page = _Page(table + MIDDLE + WORDS * len(words) + 2 * EDGE)
    page.text(WIDTH / 2, HEAD / 2, card.title, ha="center", fontsize=12)
    _figures(page, card)
    half = WIDTH / 2
    if is_image(samples.shape[1:]):
        for left, x, name in ((0.0, samples, "the first {} samples"), (half, data, "{} items of the data")):
            ax = page.axes(left + EDGE, table + 0.35, half - 2 * EDGE, MIDDLE - 0.45)
            _images(ax, x[:SHOWN], levels)
            ax.set_title(name.format(min(len(x), SHOWN)), fontsize=10)
    else:
        left, right = (page.axes(x + 0.4, table + 0.35, half - 0.55, MIDDLE - 0.75) for x in (0.0, half))
        _points(left, right, samples[:POINTS], data[:POINTS])
    style = dict(va="top", fontsize=7, family="monospace", color="0.2", linespacing=1.3)
    page.text(EDGE, table + MIDDLE + EDGE, "\n".join(words), **style)
    with whole(path) as file:
        page.figure.savefig(file, dpi=DPI)


def _figures(page: _Page, card: Card) -> None:
    """One row a measure: its name, mean ± sd, the floor, and both with every repeat on a scale."""
    samples, real, scale = 5.0, 6.6, 7.0  # right edges of two columns of numbers, left edge of the scales
    top = HEAD + 0.5 * ROW
    grey = dict(fontsize=8.5, color="0.35")
    page.text(EDGE, top, "measure (↓ lower is better, ↑ higher)", **grey)
    page.text(samples, top, rows(card)[0][1], ha="right", **grey)
    page.text(real, top, "real items", ha="right", **grey)
    page.text((scale + WIDTH - EDGE) / 2, top, "dots: repeats, bar: mean ± sd, grey: real items", ha="center", **grey)
    for f in card.figures:
        top += ROW
        page.text(EDGE, top, f"{f.label} {ARROWS[f.better]}{'  !' if f.warning else ''}", fontsize=10)
        page.text(samples, top, rounded(f.mean, f.sd), ha="right", fontsize=10, weight="bold")
        page.text(real, top, rounded(f.floor_mean, f.floor_sd), ha="right", fontsize=9, color="0.35")
        _scale(page.axes(scale, top - 0.14, WIDTH - EDGE - scale, 0.24), f)


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
    words = ("the first {} samples", "{} items of the data")
    pairs = ((left, samples, words[0], COLOURS[1]), (right, data, words[1], COLOURS[0]))
    low, high = data.min(0), data.max(0)
    room = 0.1 * (high - low) + 1e-9
    for ax, x, name, colour in pairs:
        if x.shape[1] == 1:
            ax.hist(x[:, 0], bins=np.linspace(low[0] - room[0], high[0] + room[0], 61), density=True, color=colour)
        else:
            ax.plot(x[:, 0], x[:, 1], ".", markersize=2.5, markeredgewidth=0, color=colour, alpha=0.6, rasterized=True)
            ax.set(ylim=(low[1] - room[1], high[1] + room[1]))
        ax.set(xlim=(low[0] - room[0], high[0] + room[0]))
        ax.set_title(name.format(len(x)) + _coordinates(x), fontsize=10)
        ax.tick_params(labelsize=7)


def _coordinates(x: np.ndarray) -> str:
    return f"; coordinates 1 and 2 of {x.shape[1]}" if x.shape[1] > 2 else ""


def _words(card: Card) -> list[str]:
    """Notes, protocol, model and draw, broken into lines."""
    import textwrap

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
