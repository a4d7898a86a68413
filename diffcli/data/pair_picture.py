"""Inputs, what was made of them, and what they should have become, row by row."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.base import Data, Items
from diffcli.data.pictures import image_grid

SHOWN = 30  # samples while training
WIDE = 9  # pictures in a row at most, unless one input and what is of it take more


def pair_grid(
    inputs: ArrayLike,
    samples: ArrayLike,
    targets: ArrayLike | None,
    path: Path | str,
    levels: int | None,
    each: int = 1,
) -> None:
    """Write input | its samples | target as a PNG: `samples[i]` (N each, C, H, W) is of `inputs[i // each]` (N, C', H, W).

    All are in source units; grey ones beside coloured ones are shown in grey.
    """
    given, made = np.asarray(inputs), np.asarray(samples)
    count = -(-len(made) // each)
    parts = [
        given[:count],
        *(made[k::each] for k in range(each)),
        *([] if targets is None else [np.asarray(targets)[:count]]),
    ]
    colours = max(part.shape[1] for part in parts)
    rows = [
        np.broadcast_to(part[i], (colours, *part.shape[2:])) if i < len(part) else np.zeros((colours, *part.shape[2:]))
        for i in range(count)
        for part in parts
    ]
    blocks = min(max(1, WIDE // len(parts)), count)
    image_grid(np.stack(rows), path, levels, columns=blocks * len(parts))


def pairs_of(items: Items, samples: ArrayLike, path: Path | str, data: Data) -> None:
    """`pair_grid` of the first of samples (N, C, H, W), made of the images of the first items, again and again, and those items."""
    rows = [i % len(items) for i in range(min(len(samples), SHOWN))]
    inputs, targets = items.given(rows, "image"), items.__getitems__(rows)[0]
    pair_grid(inputs, samples[: len(rows)], targets, path, data.transform.levels)


def names_of(stems: Sequence[str]) -> list[str]:
    """A name of its own for each of several things called `stems`: the stem, counted where it comes again."""
    total, seen = Counter(stems), Counter()
    found = []
    for stem in stems:
        found.append(f"{stem}_{seen[stem]}" if total[stem] > 1 else stem)
        seen[stem] += 1
    return found if len(set(found)) == len(found) else [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]
