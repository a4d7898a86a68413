"""Items beside what they became: rows of pictures over rows of pictures, points joined by lines."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.base import Data
from diffcli.data.flow import flow
from diffcli.data.pictures import SEPARATOR, image_grid, is_image, pixels

COLUMNS = 10  # pictures in a row


def translations(before: ArrayLike, after: ArrayLike, path: Path | str, source: Data, data: Data) -> None:
    """Write items (N, *S) of the source over what became of them (N, *S), each in its own units, as one PNG.

    Points are drawn in the source's units as they are: blue starts, orange ends, a line between the two.
    """
    before, after = np.asarray(before), np.asarray(after)
    if not is_image(before.shape[1:]):
        return flow(np.stack([before, after]), [0.0, 1.0], path, clock_name="from source to data")
    sides = [pixels(x, part.transform.levels) for x, part in ((before, source), (after, data))]
    n, columns = len(before), min(len(before), max(COLUMNS, math.ceil(math.sqrt(len(before)))))
    empty = np.full((-n % columns, *sides[0].shape[1:]), SEPARATOR, np.uint8)
    rows = [np.concatenate([side, empty]).reshape(-1, columns, *side.shape[1:]) for side in sides]
    blocks = np.stack(rows, axis=1).reshape(-1, *sides[0].shape[1:])
    image_grid(blocks.transpose(0, 3, 1, 2), path, 256, columns)
