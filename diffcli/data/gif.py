"""Films of pictures."""

from collections.abc import Sequence
from pathlib import Path


def write_gif(pictures: Sequence, path: Path | str, milliseconds: int) -> None:
    """Write Pillow images as an endless GIF; the last one stays 1.5 s longer."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    times = [milliseconds] * (len(pictures) - 1) + [milliseconds + 1500]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
