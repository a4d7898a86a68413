"""Samples beside the training items nearest to them: a picture in which a copy is seen."""

import textwrap
from pathlib import Path

import numpy as np

from diffcli.data.pictures import is_image, pixels
from diffcli.explain.figures import COLOURS, DPI
from diffcli.metrics.neighbours import Memorisation, MemorisationCheck
from diffcli.writing import whole

GREY = 4000  # training points drawn behind the samples
TITLE = 120  # characters in a line


def draw(check: MemorisationCheck, found: Memorisation, levels: int | None, path: Path | str) -> None:
    """Write as a PNG: the samples nearest to a training item and the first ones, each with its 3 nearest training items and
    the distances; beside them the distances of all samples and of the held-out items to their nearest training item.

    levels: as in `data.pictures.pixels`.  Points are drawn with a line to their nearest item, in their first 2 coordinates.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {f"the {len(part[0])} nearest": part for part in [check.closest()]}
    shown |= {f"the first {len(part[0])}": part for part in [check.first()]}
    images = is_image(check.closest()[0].shape[1:])
    rows = len(check.closest()[0])
    figure = Figure(figsize=(13.5, max(3.6, 1.02 * rows + 1.1) if images else 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(textwrap.wrap(found.verdict, TITLE)), fontsize=11)
    *left, right = figure.subfigures(1, 3, width_ratios=[1, 1, 1.1])
    for part, (name, rows_of) in zip(left, shown.items(), strict=True):
        part.suptitle(f"{name} of {found.n} samples", fontsize=10)
        (_images if images else _points)(part, check, rows_of, levels)
    _distances(right.subplots(), check, found)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def _images(figure, check: MemorisationCheck, rows, levels: int | None) -> None:
    samples, distances, indices, numbers = rows
    count, k = indices.shape
    items = check.training_items(indices.flatten())
    every = np.concatenate([samples.double().numpy(), items.double().numpy()])
    a = pixels(every, levels)  # one call, so that sample and item share one limit
    mine, near = a[:count], a[count:].reshape(count, k, *a.shape[1:])
    axes = figure.subplots(count, k + 1, squeeze=False)
    for j, head in enumerate(("sample", "nearest", "2nd", "3rd")):
        axes[0, j].set_title(head, fontsize=9)
    for i, row in enumerate(axes):
        words = [f"no. {numbers[i]}", *(f"{d:.3g}" for d in distances[i].tolist())]
        for ax, picture, word in zip(row, [mine[i], *near[i]], words, strict=True):
            ax.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel(word, fontsize=8, labelpad=1)
        for side in row[0].spines.values():
            side.set_color(COLOURS[1])
            side.set_linewidth(1.8)


def _points(figure, check: MemorisationCheck, rows, levels: int | None) -> None:
    samples, _, indices, _ = rows
    ax = figure.subplots()
    x, near = (_plane(a) for a in (samples, check.training_items(indices[:, 0])))
    behind = _plane(check.training_items(range(min(len(check.search), GREY))))
    ax.plot(*behind.T, ".", color="0.75", markersize=2, markeredgewidth=0, label="training items")
    ax.plot(*np.stack([x, near], 1).T, "-", color=COLOURS[0], linewidth=1)
    ax.plot(*near.T, "o", color="0.3", markersize=5, markerfacecolor="none", label="nearest")
    ax.plot(*x.T, ".", color=COLOURS[1], markersize=6, label="samples")
    ax.set_aspect("equal", adjustable="datalim")
    d = samples.flatten(1).shape[1]
    ax.set(xlabel="x1" + (f" (first 2 of {d} coordinates)" if d > 2 else ""), ylabel="x2" if d > 1 else "")
    ax.legend(fontsize=8)


def _plane(x) -> np.ndarray:
    """The first two coordinates; zero where there is one."""
    x = x.flatten(1).double().numpy()[:, :2]
    return x if x.shape[1] == 2 else np.pad(x, ((0, 0), (0, 1)))


def _distances(ax, check: MemorisationCheck, found: Memorisation) -> None:
    sets = {f"{found.n} samples": (check.distances[:, 0].numpy(), COLOURS[1])}
    if check.held_out is not None:
        sets[f"{found.held_out} held-out items"] = (check.held_out[:, 0].cpu().numpy(), COLOURS[0])
    both = np.concatenate([d for d, _ in sets.values()])
    end = np.quantile(both, 0.995)  # the few beyond, as far as they may be, stand in the last bin
    bins = np.linspace(both.min(), end, 61) if end > both.min() else 10
    for name, (d, colour) in sets.items():
        weights = np.full(len(d), 1 / len(d))
        ax.hist(np.minimum(d, end), bins=bins, weights=weights, histtype="stepfilled", alpha=0.35, color=colour)
        ax.axvline(
            np.median(d), color=colour, linestyle="--", linewidth=1.2, label=f"{name}, median {np.median(d):.3g}"
        )
    ax.set(xlabel=f"distance to the nearest of {found.training} training items", ylabel="part of them")
    ax.set_ylim(0, 1.18 * ax.get_ylim()[1])
    ax.legend(fontsize=9, loc="upper right")
