"""Items that the user names on the command line: pictures, folders of them, arrays."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffcli.data.array import load_array
from diffcli.data.decode import check_header, read_picture
from diffcli.data.image_folder import SUFFIXES
from diffcli.data.pictures import is_image
from diffcli.errors import UsageError


def read_inputs(paths: str | Sequence[str], shape: Sequence[int], levels: int | None, key: str = "input") -> Tensor:
    """The items of files and folders in the order given, those of a folder sorted, (N, *S) float32 or float64 in source units.

    A picture is scaled to levels 0..levels - 1 of items (C, H, W), C 1 or 3: its shorter side to H, then the centre; transparent
    parts are laid over white.  A .npy holds (N, *S) or (*S) in source units, of pictures also (N, H, W, C), and (N, H, W) of grey
    ones.  key: what the setting is called.
    Raises UsageError for a path that is not there, a folder without pictures, items of another shape or outside the levels.
    """
    return read_named(paths, shape, levels, key)[0]


def read_named(
    paths: str | Sequence[str], shape: Sequence[int], levels: int | None, key: str = "input"
) -> tuple[Tensor, list[str]]:
    """The items as `read_inputs`, and of each the stem of its file, counted in a file of several."""
    found, names = [], []
    for path in files(paths, key):
        read = _array if path.suffix.lower() == ".npy" else _picture
        x = read(path, tuple(shape), levels, key)
        found.append(x.to(torch.promote_types(x.dtype, torch.float32)))
        names += [path.stem] if len(x) == 1 else [f"{path.stem}_{i:06d}" for i in range(len(x))]
    return torch.cat(found), names


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


def picture_size(path: Path) -> tuple[int, int, int]:
    """Channels (1 of a grey picture, else 3), height and width of a picture file, as it is seen.  Raises UsageError."""
    from PIL import Image, ImageOps

    check_header(path)
    with Image.open(path) as opened:
        grey = opened.mode in ("1", "L", "LA", "F") or opened.mode.startswith("I")
        width, height = ImageOps.exif_transpose(opened).size
    return 1 if grey else 3, height, width


def _array(path: Path, shape: tuple[int, ...], levels: int | None, key: str) -> Tensor:
    x = load_array(str(path))
    last = (*shape[1:], shape[0]) if is_image(shape) else None  # channels last
    if tuple(x.shape) == shape:
        x = x[None]
    elif last is not None and tuple(x.shape[1:]) == last:
        x = x.movedim(-1, 1)
    elif last is not None and shape[0] == 1 and tuple(x.shape[1:]) == shape[1:]:
        x = x[:, None]
    if tuple(x.shape[1:]) != shape:
        raise UsageError(f"{key}={path} has items of shape {tuple(x.shape[1:])}, not {shape}")
    if levels is not None and x.is_floating_point() and levels > 2 and x.min() >= -1 and x.max() <= 1 and x.max() > 0:
        raise UsageError(
            f"{key}={path} has values from {x.min():g} to {x.max():g}, and the levels are 0..{levels - 1}",
            f"the values times {levels - 1}, if they lie in [0, 1]",
        )
    return x


def _picture(path: Path, shape: tuple[int, ...], levels: int | None, key: str) -> Tensor:
    if not is_image(shape) or levels is None:
        raise UsageError(f"{key}={path} is no .npy, and items of shape {shape} are no pictures", f"{key}=FILE.npy")
    channels, height, width = shape
    if height != width:
        raise UsageError(f"{key}={path}: the model's pictures are {height}x{width}, not square", f"{key}=FILE.npy")
    return read_picture(path, height, channels)[None] * ((levels - 1) / 255)
