"""A folder of pairs of pictures as data: the target is the item, the input its condition."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, final

from torch import Tensor

from diffcli.data.base import Data, Items, check_count
from diffcli.data.image_folder import (
    PictureItems,
    check_channels,
    check_fractions,
    check_headers,
    divide,
    pictures_in,
    unopened,
)
from diffcli.data.transform import Levels
from diffcli.errors import UsageError

Pair = tuple[Path, Path]  # of the input and the target, one file where it holds both


@final
class PairItems(Items):
    """Targets as items, y = -1, each with its input as the condition "image"; names: what the files of each are called."""

    def __init__(self, inputs: PictureItems, targets: PictureItems):
        self.inputs, self.targets = inputs, targets
        self.names = [file.stem for file in inputs.files]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self.targets.__getitems__(indices)

    def given(self, indices: Sequence[int] | Tensor, condition: str) -> Tensor:
        if condition != "image":
            return super().given(indices, condition)
        return self.inputs.__getitems__(indices)[0]


@final
class ImagePairs(Data):
    """Pairs of pictures, 0..255: targets `(channels, size, size)`, each with its input `(input_channels, size, size)`.

    layout folders: root has a folder `input` and a folder `target`, with pictures of the same names (endings may differ), in
    sub-folders too; side_by_side: each picture under root holds both halves, the input on the side that `input` names (pix2pix).
    input, target: by default the folders "input" and "target", and the sides "left" and "right".  size: shorter side, then the
    centre, of both.  Splits: shares of the pairs, evenly spaced in sorted order of the names; val_fraction 0 makes "val" the
    test set.  Raises UsageError for arguments out of range, and when loading for a missing folder, a picture without partner,
    and a file whose header cannot be read.  Isola et al. 2017, sec. 3, arXiv:1611.07004; Saharia et al. 2022, arXiv:2111.05826.
    """

    units = "pixels 0..255"

    def __init__(
        self,
        root: str,
        layout: Literal["folders", "side_by_side"] = "folders",
        input: str | None = None,
        target: str | None = None,
        size: int = 32,
        channels: int = 3,
        input_channels: int = 3,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
    ):
        super().__init__()
        if not root:
            raise UsageError("data=image_pairs needs data.root", "data.root=FOLDER with input/ and target/")
        if layout not in ("folders", "side_by_side"):
            raise UsageError(f"data.layout={layout} is neither folders nor side_by_side")
        check_count("size", size, 1)
        check_channels(channels)
        check_channels(input_channels, "input_channels")
        check_fractions(test_fraction, val_fraction)
        self.root, self.layout, self.size = root, layout, size
        self.channels, self.input_channels = channels, input_channels
        self.test_fraction, self.val_fraction = test_fraction, val_fraction
        self.sides = _sides(layout, input, target)
        self.transform = Levels(256)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    @property
    def image(self) -> tuple[int, ...]:
        return (self.input_channels, self.size, self.size)

    @cached_property
    def _pairs(self) -> list[Pair]:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UsageError(f"there is no folder data.root={self.root}", "data.root=FOLDER with input/ and target/")
        if self.layout == "side_by_side":
            return [(file, file) for file in pictures_in(root, f"data.root={self.root}")]
        for side in self.sides:
            if not (root / side).is_dir():
                there = sorted(p.name for p in root.iterdir() if p.is_dir())[:8]
                raise UsageError(
                    f"data.root={self.root} has no folder {side}/" + (f", only {', '.join(there)}" if there else ""),
                    "data.input=NAME data.target=NAME, or data.layout=side_by_side where a picture holds both",
                )
        inputs, targets = (_by_name(root / side) for side in self.sides)
        for found, other, side in ((inputs, targets, self.sides[1]), (targets, inputs, self.sides[0])):
            alone = sorted(found.keys() - other.keys())
            if alone:
                raise UsageError(
                    f"{found[alone[0]]} has no partner in {side}/ ({len(alone)} of {len(found)} have none)",
                    "the same name on both sides; endings may differ",
                )
        return [(inputs[name], targets[name]) for name in sorted(inputs)]

    def check(self) -> None:
        """Open the files' headers as `ImageFolder.check` does; raises UsageError naming the first that cannot be read."""
        check_headers([file for pair in self._pairs for file in dict.fromkeys(pair)])

    @property
    def notes(self) -> tuple[str, ...]:
        return unopened(len({file for pair in self._pairs for file in pair}))

    @cached_property
    def _parts(self) -> dict[str, list[Pair]]:
        return divide(self._pairs, self.test_fraction, self.val_fraction)

    def _load(self, name: str) -> Items:
        if not self._splits:
            self.check()
        pairs = self._pairs if name == "all" else self._parts[name]
        halves = (None, None) if self.layout == "folders" else self.sides
        counts = (self.input_channels, self.channels)
        return PairItems(
            *(
                PictureItems([pair[k] for pair in pairs], [-1] * len(pairs), self.size, counts[k], halves[k])
                for k in (0, 1)
            )
        )


def _sides(layout: str, input: str | None, target: str | None) -> tuple[str, str]:
    """Where the input and the target are: two folders, or two halves."""
    usual = ("input", "target") if layout == "folders" else ("left", "right")
    if layout == "side_by_side":
        for name, value in (("input", input), ("target", target)):
            if value not in (None, *usual):
                raise UsageError(f"data.{name}={value}: side_by_side has the sides left and right", f"data.{name}=left")
        other = {"left": "right", "right": "left"}
        input, target = input or other.get(target), target or other.get(input)
    sides = (input or usual[0], target or usual[1])
    if sides[0] == sides[1]:
        raise UsageError(f"data.input={sides[0]} is data.target too", "two different ones")
    return sides


def _by_name(folder: Path) -> dict[str, Path]:
    """The pictures under a folder by their path in it without its ending."""
    found: dict[str, Path] = {}
    for file in pictures_in(folder, str(folder)):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UsageError(f"{found[name]} and {file} have the same name", "one of the two")
        found[name] = file
    return found
