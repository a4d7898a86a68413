"""What every data set is: splits of items in source units, loaded when first asked for."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffcli.data.transform import Transform
from diffcli.errors import UsageError

LOOKED_AT = 16
SPLITS = ("train", "val", "test", "all")


class Items(Dataset, ABC):
    """One split: items x `(*S)` in source units, each with its label y, -1 where there is none."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the items."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Give the items at `indices` as one batch, X `(B, *S)` and Y `(B,)` int64; IndexError outside the split."""

    def held(self) -> tuple[Tensor, Tensor] | None:
        """Give all items as they are in memory, X `(N, *S)` and Y `(N,)`; None where they have to be read."""
        return None

    def given(self, indices: Sequence[int] | Tensor, condition: str) -> Tensor:
        """Give the condition of the items at `indices`, "vector" `(B, k)` float32 or "image" `(B, *S')` in source units.

        Raises UsageError where the data have none.
        """
        raise UsageError(f"these data have no condition={condition}", "condition=label, or none")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give item `index`, x `(*S)` and y `()` int64; raises IndexError outside the split."""
        x, y = self.__getitems__([index])
        return x[0], y[0]


@final
class TensorItems(Items):
    """Items held in memory: x `(N, *S)` uint8, float32 or float64, y `(N,)` int64 or None for no labels, vectors `(N, k)`."""

    def __init__(self, x: Tensor, y: Tensor | None = None, vectors: Tensor | None = None):
        y = torch.full((len(x),), -1) if y is None else y.to(torch.int64)
        if y.shape != (len(x),):
            raise UsageError(f"{len(x)} items have labels of shape {tuple(y.shape)}, not ({len(x)},)")
        self.x, self.y, self.vectors = x, y, vectors

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.x[index], self.y[index]

    def held(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def given(self, indices: Sequence[int] | Tensor, condition: str) -> Tensor:
        if condition != "vector" or self.vectors is None:
            return super().given(indices, condition)
        return self.vectors[torch.as_tensor(indices, dtype=torch.int64)].float()


class Data(ABC):
    """A data set; its constructor only checks its arguments, so that it can be built where its files are missing.

    transform: source units to model space.  classes: number of labels, 0 for none; class_names has one name for each.
    vector, image: the dimension of the condition vector, and the shape of the condition image, that `Items.given` has of
    each item; 0 and None for none.  An image's units are those of the items.
    held_out: whether "test" shares no item with "train".  units: of the source, as figures say them.
    notes: sentences on what was not looked at before any work.
    classes, class_names, vector and image may read files where only those can tell; so may shape.
    """

    transform: Transform
    classes: int = 0
    class_names: list[str] = []
    vector: int = 0
    image: tuple[int, ...] | None = None
    held_out: bool = True
    notes: tuple[str, ...] = ()
    units: str

    def __init__(self):
        self._splits: dict[str, Items] = {}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Give the shape S of one item."""

    @abstractmethod
    def _load(self, name: str) -> Items:
        """Read or draw the split `name`, one of SPLITS."""

    @final
    def split(self, name: str) -> Items:
        """Give the split "train", "val", "test" or "all" (every item there is), loaded once.

        Raises UsageError for another name, for a split without items, and for files that are missing or unreadable.
        """
        if name not in SPLITS:
            raise UsageError(f"there is no split {name!r}", f"splits are {', '.join(SPLITS)}")
        if name not in self._splits:
            items = self._load(name)
            if len(items) == 0:
                raise UsageError(f"the split {name!r} of the data has no items")
            self._splits[name] = items
        return self._splits[name]


def concatenate(parts: Sequence[TensorItems]) -> TensorItems:
    """Join splits in the order given, x of the widest dtype among them."""
    x, y = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y"))
    vectors = None if parts[0].vectors is None else torch.cat([part.vectors for part in parts])
    return TensorItems(x, y, vectors)


def identity(items: Items) -> str:
    """The number of items and a hash of up to LOOKED_AT of them and their labels, evenly spread: other data
    under the same name differ in it."""
    n, step = len(items), max(1, len(items) // LOOKED_AT)
    parts = items.__getitems__(range(0, n, step)[:LOOKED_AT])
    found = hashlib.blake2b(digest_size=6)
    for part in parts:  # x and the labels
        found.update(f"{part.dtype} {tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
    return f"{n:,} items ({found.hexdigest()})"


def check_count(name: str, value: int, least: int) -> None:
    """Raise UsageError where the argument `data.name` is below its least value."""
    if value < least:
        raise UsageError(f"data.{name}={value} is below {least}")


def split_seed(seed: int, name: str) -> int:
    """Derive a 64-bit seed from (seed, split), so that splits are independent draws; UsageError for a negative seed."""
    from numpy.random import SeedSequence

    check_count("seed", seed, 0)
    return int(SeedSequence([seed, SPLITS.index(name)]).generate_state(1, "uint64")[0])
