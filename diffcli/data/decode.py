"""One picture file to pixels, whatever its mode, or a sentence that names the file."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffcli.errors import UsageError

Half = Literal["left", "right"]


def check_header(file: Path) -> None:
    """Read a picture file's header only; raises UsageError naming a file that is no picture."""
    from PIL import Image

    try:
        with Image.open(file):
            pass
    except _errors() as error:
        raise UsageError(f"{file} is not a readable picture: {error}", "remove or replace it") from error


def read_picture(file: Path, size: int, channels: int, half: Half | None = None) -> Tensor:
    """Decode a picture, or a half of it, to `(channels, size, size)` uint8, 0..255: shorter side to size (antialiased), then
    the centre.

    Transparent pixels are laid over white, 16 bits become 8 (65535 -> 255), and the camera's orientation is applied.
    Raises UsageError naming a file that is truncated, damaged, or has values that no 8 bits stand for.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            picture = _half(_eight_bits(ImageOps.exif_transpose(opened), file), half)
            picture = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (size, size), Image.BICUBIC)
    except _errors() as error:
        raise UsageError(f"{file} cannot be decoded: {error}", "remove or replace it") from error
    return torch.from_numpy(np.array(picture)).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def _half(picture, half: Half | None):
    width, height = picture.size
    if half is None:
        return picture
    return picture.crop(
        (0, 0, max(1, width // 2), height) if half == "left" else (width - max(1, width // 2), 0, width, height)
    )


def _eight_bits(picture, file: Path):
    import numpy as np
    from PIL import Image

    if picture.mode == "F":
        raise UsageError(f"{file} has floating-point pixels, whose black and white are unknown", "save it as 8 bits")
    if picture.mode.startswith("I"):
        values = np.asarray(picture.convert("I"))
        if values.min() < 0 or values.max() > 65535:
            raise UsageError(f"{file} has pixels outside 0..65535", "save it with 8 or 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def _errors() -> tuple[type[Exception], ...]:
    from PIL import Image

    # Pillow's decoders raise these for damaged files: SyntaxError for a broken PNG chunk, EOFError for a short GIF.
    return OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError
