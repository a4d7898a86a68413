"""Any folder of pictures as data, decoded as they are asked for."""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from diffcli.data.base import Data, Items, check_count
from diffcli.data.decode import Half, check_header, read_picture
from diffcli.data.transform import Levels
from diffcli.errors import UsageError

HEADERS = 20_000  # files that are opened before any work: minutes on a shared disk
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@final
class PictureItems(Items):
    """Picture files, or one half of each, decoded at each access to x `(C, size, size)` uint8; y by the caller, -1 for none.

    An access raises UsageError naming the file where that cannot be decoded.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], size: int, channels: int, half: Half | None = None
    ):
        self.files, self.labels, self.size, self.channels = list(files), list(labels), size, channels
        self.half = half

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        indices = [int(i) for i in indices]
        x = torch.stack([read_picture(self.files[i], self.size, self.channels, self.half) for i in indices])
        return x, torch.tensor([self.labels[i] for i in indices])


@final
class ImageFolder(Data):
    """Pictures `(channels, size, size)`, 0..255, of all files under root: shorter side to size, then the centre.

    root: folder, searched recursively; where all pictures lie in sub-folders, the first level of those is the classes.
    channels: 1 (grey) or 3 (RGB).  test_fraction, val_fraction: shares of the files, evenly spaced in sorted order;
    val_fraction 0 makes "val" the test set.  Raises UsageError for arguments out of range, and when loading for a
    missing folder, one without pictures, and a file whose header cannot be read (of many files, HEADERS are looked at).
    """

    units = "pixels 0..255"

    def __init__(
        self,
        root: str,
        size: int = 32,
        channels: int = 3,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
    ):
        super().__init__()
        if not root:
            raise UsageError("data=image_folder needs data.root", "data.root=FOLDER of pictures")
        check_count("size", size, 1)
        check_channels(channels)
        check_fractions(test_fraction, val_fraction)
        self.root, self.size, self.channels = root, size, channels
        self.test_fraction, self.val_fraction = test_fraction, val_fraction
        self.transform = Levels(256)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def class_names(self) -> list[str]:
        parents = [file.relative_to(self._folder).parts[:-1] for file in self._files]
        return sorted({parts[0] for parts in parents}) if all(parents) else []

    @property
    def _folder(self) -> Path:
        return Path(self.root).expanduser()

    @cached_property
    def _files(self) -> list[Path]:
        return pictures_in(self._folder, f"data.root={self.root}")

    def check(self) -> None:
        """Open the files' headers, of many files HEADERS evenly spread, without decoding.

        Raises UsageError naming the first that cannot be read.
        """
        check_headers(self._files)

    @property
    def notes(self) -> tuple[str, ...]:
        return unopened(len(self._files))

    def _load(self, name: str) -> Items:
        if not self._splits:
            self.check()
        files = self._files if name == "all" else self._parts[name]
        number = {label: i for i, label in enumerate(self.class_names)}
        labels = [number[file.relative_to(self._folder).parts[0]] if number else -1 for file in files]
        return PictureItems(files, labels, self.size, self.channels)

    @cached_property
    def _parts(self) -> dict[str, list[Path]]:
        return divide(self._files, self.test_fraction, self.val_fraction)


def check_headers(files: Sequence[Path]) -> None:
    """Raise UsageError for the first file that is no picture, of at most HEADERS that are looked at, evenly spread."""
    for file in files[:: max(1, -(-len(files) // HEADERS))]:
        check_header(file)


def unopened(count: int) -> tuple[str, ...]:
    """What to say where `check_headers` did not look at all of so many."""
    if count <= HEADERS:
        return ()
    return (f"of {count:,} pictures one in {-(-count // HEADERS)} was opened so far; a damaged one would stop the run",)


def check_channels(channels: int, name: str = "channels") -> None:
    """Raise UsageError unless the argument `data.name` is 1 or 3."""
    if channels not in (1, 3):
        raise UsageError(f"data.{name}={channels} is neither 1 (grey) nor 3 (RGB)")


def check_fractions(test_fraction: float, val_fraction: float) -> None:
    """Raise UsageError unless the shares leave something for each split."""
    if not (test_fraction > 0 and val_fraction >= 0 and test_fraction + val_fraction < 1):
        raise UsageError(
            f"data.test_fraction={test_fraction} and data.val_fraction={val_fraction} do not leave a training set",
            "0 < test_fraction, 0 <= val_fraction, and a sum below 1",
        )


def pictures_in(folder: Path, what: str) -> list[Path]:
    """The picture files under a folder, sorted; raises UsageError, calling it `what`, where there is none."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {what}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UsageError(f"{what} has no pictures", "files end in " + " ".join(sorted(s[1:] for s in SUFFIXES)))
    return files


def divide(items: Sequence, test_fraction: float, val_fraction: float) -> dict[str, list]:
    """The splits of a sequence, each in its order; val_fraction 0 makes "val" the test set."""
    test, rest = evenly(items, test_fraction)
    val, train = evenly(rest, val_fraction / (1 - test_fraction))
    return {"train": train, "val": val if val_fraction else test, "test": test}


def evenly(items: Sequence, fraction: float) -> tuple[list, list]:
    """Divide a sequence into a share, evenly spaced from the first item on, and the rest: item i is in the share where
    `floor(i fraction) > floor((i - 1) fraction)`."""
    taken = [math.floor(i * fraction) > math.floor((i - 1) * fraction) for i in range(len(items))]
    share = [item for item, take in zip(items, taken, strict=True) if take]
    return share, [item for item, take in zip(items, taken, strict=True) if not take]
