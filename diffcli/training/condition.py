"""What a network is told of each item while training, and how often it is told nothing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffcli.data.base import Data, Items
from diffcli.errors import UsageError


class Condition:
    """The keyword `name` of the network, "label", "vector" or "image", and with probability `drop` none in its place.

    None is label -1, and a row of NaN of the others: the ∅ of classifier-free guidance.  An image is in model space.
    Ho & Salimans 2022, alg. 1, arXiv:2207.12598.
    """

    def __init__(self, name: str, drop: float, data: Data):
        self.name, self.drop, self.transform = name, drop, data.transform

    def items(self, items: Items) -> Items:
        """The items with their conditions as y."""
        return items if self.name == "label" else Given(items, self.name)

    def __call__(self, y: Tensor, x0: Tensor, draw=None) -> dict[str, Tensor]:
        """The keywords for a batch x0 (B, *S) with conditions y; some are dropped by `draw`, none without one."""
        if self.name == "image":
            y = self.transform.encode(y)
        if self.name != "label":
            y = y.to(x0)
        if draw is not None and self.drop:
            lost = draw.uniform("drop", (len(y),)) < self.drop
            none = torch.full((), -1 if self.name == "label" else math.nan, dtype=y.dtype, device=y.device)
            y = torch.where(lost.view(-1, *[1] * (y.ndim - 1)), none, y)
        return {self.name: y}


class Given(Items):
    """Items whose y is their condition, see `Items.given`."""

    def __init__(self, items: Items, condition: str):
        self.inner, self.condition = items, condition

    def __len__(self) -> int:
        return len(self.inner)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.__getitems__(indices)[0], self.inner.given(indices, self.condition)

    def held(self) -> tuple[Tensor, Tensor] | None:
        held = self.inner.held()
        return None if held is None else (held[0], self.inner.given(range(len(self.inner)), self.condition))


def check_condition(name: str, data: Data) -> None:
    """Raise UsageError where the data have no such condition."""
    if name == "label" and data.classes < 2:
        what = "no labels" if data.classes == 0 else "a single class"
        raise UsageError(
            f"condition=label: these data have {what}",
            "data=mnist|fashion_mnist|cifar10|digits|mixture|moons|circles, or an image_folder of one sub-folder a class",
        )
    if name == "vector" and not data.vector:
        raise UsageError(
            "condition=vector: these data have no vectors", "data=array data.file=x.npy data.vectors=c.npy"
        )
    if name == "image" and data.image is None:
        raise UsageError("condition=image: these data have no pairs of pictures", "task=paired data.root=DIR")
