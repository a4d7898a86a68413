"""Items that the user names on the command line: pictures, folders of them, arrays."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffcli.data.array import load_array
from diffcli.data.decode import read_picture
from diffcli.data.image_folder import SUFFIXES
from diffcli.data.pictures import is_image
from diffcli.errors import UsageError


def read_inputs(paths: str | Sequence[str], shape: Sequence[int], levels: int | None, key: str = "input") -> Tensor:
    """The items of files and folders in the order given, those of a folder sorted, (N, *S) float32 or float64 in source units.

    A picture is scaled to levels 0..levels - 1 of items (C, H, W), C 1 or 3: its shorter side to H, then the centre.  A .npy
    holds (N, *S) or (*S) in source units.  key: what the setting is called.
    Raises UsageError for a path that is not there, a folder without pictures, and items of another shape.
    """
    found = []
    for path in files(paths, key):
        if path.suffix.lower() == ".npy":
            x = load_array(str(path))
            x = x[None] if tuple(x.shape) == tuple(shape) else x
            if tuple(x.shape[1:]) != tuple(shape):
                raise UsageError(
                    f"{key}={path} has items of shape {tuple(x.shape[1:])}, the model takes {tuple(shape)}"
                )
        else:
            x = _picture(path, shape, levels, key)
        found.append(x)
    return torch.cat([x.to(torch.promote_types(x.dtype, torch.float32)) for x in found])


def files(paths: str | Sequence[str], key: str = "input") -> list[Path]:
    """The files that the paths name, a folder's pictures in sorted order.  Raises UsageError for one that is not there."""
    found: list[Path] = []
    for name in [paths] if isinstance(paths, str) else paths:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
            if not inside:
                raise UsageError(f"{key}={name}: the folder has no pictures", f"{key}=FILE.png, FOLDER or FILE.npy")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{key}={name}: there is no such file or folder", f"{key}=FILE.png, FOLDER or FILE.npy")
    if not found:
        raise UsageError(f"{key}=[] names no file", f"{key}=FILE.png, FOLDER or FILE.npy")
    return found


def _picture(path: Path, shape: Sequence[int], levels: int | None, key: str) -> Tensor:
    if not is_image(shape) or levels is None:
        raise UsageError(
            f"{key}={path} is no .npy, and the model's items of shape {tuple(shape)} are no pictures", f"{key}=FILE.npy"
        )
    channels, height, width = shape
    if height != width:
        raise UsageError(f"{key}={path}: the model's pictures are {height}x{width}, not square", f"{key}=FILE.npy")
    return read_picture(path, height, channels)[None] * ((levels - 1) / 255)
