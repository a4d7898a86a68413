"""Pictures of the same items in several kinds, one row above the other: inputs, reconstructions, translations."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffcli.data.pictures import is_image, pixels, strip
from diffcli.data.scatter import scatter

COLUMNS, BLOCKS = 16, 4


def rows_picture(kinds: Mapping[str, tuple[ArrayLike, int | None]], path: Path | str) -> None:
    """Write kinds, each (items `(N, *S)` in its own source units, its levels), as one PNG, N the same in all.

    Pictures as rows of at most 16, up to 4 blocks of them; points as one scatter a kind.
    """
    shapes = {np.shape(x)[1:] for x, _ in kinds.values()}
    if not all(is_image(shape) for shape in shapes):
        scatter({name: x for name, (x, _) in kinds.items()}, path)
        return
    n = len(next(iter(kinds.values()))[0])
    columns = min(n, COLUMNS)
    shown = min(n // columns, BLOCKS) * columns
    eight = {  # all of them in 256 levels, as their own say
        name: pixels(np.asarray(x)[:shown], levels).transpose(0, 3, 1, 2).astype(np.float64)
        for name, (x, levels) in kinds.items()
    }
    framed = {
        name: x.reshape(shown // columns, columns, *x.shape[1:]).transpose(1, 0, 2, 3, 4) for name, x in eight.items()
    }
    strip(framed, [str(i) for i in range(columns)] if shown == columns else [""] * columns, path, 256)
