"""What every command that makes items writes of them."""

from pathlib import Path

import numpy as np

from diffcli.commands.model import Model
from diffcli.commands.partial import Rows
from diffcli.data.pictures import is_image, write_pngs
from diffcli.writing import whole


def write_samples(
    path: Path, x: np.ndarray | Rows, model: Model, png: bool, names: list[str] | None = None
) -> list[Path]:
    """samples.npy of x (n, *S) in source units, and of images with `png` the folder samples, a file each by its name.

    Rows are those of a file that becomes samples.npy.
    """
    if not isinstance(x, Rows):
        with whole(path / "samples.npy") as file:
            np.save(file, x)
    files = [path / "samples.npy"]
    if is_image(model.shape) and png:
        write_pngs(x, path / "samples", model.data.transform.levels, names)
        files.append(path / "samples")
    return files
