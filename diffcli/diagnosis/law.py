"""What the self check is made of: a law has a value that is measured, and a bound that it keeps where all is well."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Law:
    """A law as it was found: it holds where `value <= bound`.

    value: how far the two sides are apart, inf where it could not be measured.  where: the case that is worst, or what went
    wrong.
    """

    name: str
    formula: str
    source: str
    value: float
    bound: float
    passed: bool
    seconds: float
    where: str


class Worst:
    """The largest of the values seen, and where it was; a value that is not a number is the largest of all."""

    def __init__(self):
        self.value, self.where = -math.inf, ""

    def see(self, value: Tensor | float, where: str = "") -> None:
        value = float(value.max() if isinstance(value, Tensor) else value)
        value = math.inf if math.isnan(value) else value
        if value > self.value:
            self.value, self.where = value, where


class Claim(NamedTuple):
    """A law before it is measured; measure(device) gives the worst case."""

    name: str
    formula: str
    source: str
    bound: float
    measure: Callable[[torch.device], tuple[float, str]]


def law(into: list[Claim], name: str, formula: str, source: str, bound: float):
    """Decorator that puts a function (device, worst) among the claims, to be called with an empty Worst."""

    def put(fn):
        def measure(device: torch.device) -> tuple[float, str]:
            worst = Worst()
            fn(device, worst)
            return worst.value, worst.where

        into.append(Claim(name, formula, source, bound, measure))
        return fn

    return put


def apart(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; both on any device."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    size = b.abs().max()
    return ((a - b).abs().max() / (size if size > 0 else 1.0)).item()
