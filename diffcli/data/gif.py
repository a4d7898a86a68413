"""Films of pictures."""

from collections.abc import Sequence
from pathlib import Path

from diffcli.writing import whole


def write_gif(pictures: Sequence, path: Path | str, milliseconds: int) -> None:
    """Write Pillow images as an endless GIF; the last one stays 1.5 s longer."""
    times = [milliseconds] * (len(pictures) - 1) + [milliseconds + 1500]
    with whole(path) as file:
        pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
