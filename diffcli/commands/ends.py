"""What interpolate goes between: `a=FILE.png`, `a=test:0`, `a=seed:3`, `a=3`."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.commands.model import Model
from diffcli.data.base import SPLITS
from diffcli.data.inputs import read_inputs
from diffcli.errors import UsageError
from diffcli.randomness import ItemNoise


@dataclass
class End:
    """One end of a way, an item x (*S) in source units, or the sample that a seed gives."""

    name: str
    x: Tensor | None = None
    seed: int | None = None

    def latent(self, shape: tuple[int, ...]) -> Tensor:
        """The standard normal start of sample 0 of `diffcli sample seed=…`, (*S) float64."""
        return ItemNoise(self.seed, [0], shape, torch.float64)(0)[0]


def read_pairs(model: Model) -> list[tuple[End, End]]:
    """The pairs that a= and b= name; one end goes with each of several others.  Raises UsageError."""
    a, b = model.config["a"], model.config["b"]
    if (a is None) != (b is None):
        key, other = ("a", "b") if a is None else ("b", "a")
        raise UsageError(f"{other}= is one end of the way, and {key}= the other", f"{key}=FILE.png|test:0|seed:3")
    a, b = ("test:0", "test:1") if a is None else (a, b)
    ends = [read_ends("a", a, model), read_ends("b", b, model)]
    counts = [len(part) for part in ends]
    if min(counts) > 1 and counts[0] != counts[1]:
        raise UsageError(f"a= names {counts[0]} items and b= {counts[1]}", "as many, or one of them for all")
    n = max(counts)
    return list(zip(*(part * n if len(part) == 1 else part for part in ends), strict=True))


def read_ends(key: str, wish: str | int | list[str], model: Model) -> list[End]:
    """The items that `key`=`wish` names.  Raises UsageError."""
    if isinstance(wish, list):
        found = [end for one in wish for end in read_ends(key, one, model)]
        if not found:
            raise UsageError(f"{key}=[] names no item", f"{key}=FILE.png|test:0|seed:3")
        return found
    text = str(wish)
    if match := re.fullmatch(r"(?:seed:)?(\d+)", text):
        return [End(f"seed {match[1]}", seed=int(match[1]))]
    if match := re.fullmatch(r"([a-z]+):(-?\w*)", text):
        return [_item(key, match[1], match[2], model)]
    x = read_inputs(text, model.shape, model.data.transform.levels, key)
    if not bool(x.isfinite().all()):
        raise UsageError(f"{key}={text} holds values that are not finite")
    return [End(key, x=one) for one in x]


def _item(key: str, split: str, index: str, model: Model) -> End:
    if split not in SPLITS or not index.isdecimal():
        raise UsageError(f"{key}={split}:{index} names no item", f"{key}=test:0|seed:3|FILE.png")
    items = model.data.split(split)
    if int(index) >= len(items):
        raise UsageError(f"{key}={split}:{index}: the split has {len(items)} items", f"{key}={split}:{len(items) - 1}")
    x, _ = items.__getitems__([int(index)])
    if tuple(x.shape[1:]) != model.shape:
        raise UsageError(f"{key}={split}:{index} has the shape {tuple(x.shape[1:])}, the model takes {model.shape}")
    return End(f"{split} {index}", x=x[0].to(torch.promote_types(x.dtype, torch.float32)))
