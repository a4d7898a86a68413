"""No data: what a model that came without its data set is told of it."""

from math import prod
from typing import NoReturn, final

from diffcli.data.base import Data
from diffcli.data.transform import Identity, Levels
from diffcli.errors import UsageError


@final
class Blank(Data):
    """A shape and a number of levels without items, so that samples have units; every split raises UsageError.

    levels: values a dimension takes, 256 for 8-bit images in [-1, 1]; None for continuous data, not scaled.
    """

    held_out = False

    def __init__(self, shape: list[int] | None = None, levels: int | None = 256):
        super().__init__()
        if not shape:
            raise UsageError("data=blank needs data.shape", "data.shape=[3,32,32]")
        if min(shape) < 1 or prod(shape) > 2**31:
            raise UsageError(f"data.shape={list(shape)} is no shape of items")
        self._shape = tuple(shape)
        self.transform = Identity() if levels is None else Levels(levels)
        self.units = "values" if levels is None else f"levels 0..{levels - 1}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def _load(self, name: str) -> NoReturn:
        raise UsageError("data=blank has no items", "data=array data.file=FILE.npy, data=image_folder data.root=DIR, …")
