"""How a solver ends that cannot go on: why, where, after how many evaluations, and for which item."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffcli.errors import NumericalError


class Ended(NumericalError):
    """A solver that cannot go on, `who: why at clock = at after nfe evaluations (item)`.

    at: the time that the clock shows.  row: of the batch, where the item has no name yet.  A copy of it that knows more is
    made by `said`, as it rises to those who know.
    """

    def __init__(
        self,
        why: str,
        hint: str = "",
        clock: str = "t",
        at: float = math.nan,
        nfe: int = 0,
        row: int | None = None,
        item: str = "",
        who: str = "",
    ):
        whose = item or ("" if row is None else f"item {row} of its batch")
        super().__init__(
            f"{who + ': ' if who else ''}{why} at {clock} = {at:.4g} after {nfe} evaluation{'s' * (nfe != 1)}"
            f"{f' ({whose})' if whose else ''}",
            hint,
        )
        self.args = (why, hint, clock, at, nfe, row, item, who)  # what pickle makes it of again
        self.clock, self.at, self.nfe, self.row = clock, at, nfe, row

    def said(self, **more) -> "Ended":
        """The same with some of its fields changed."""
        names = ("why", "hint", "clock", "at", "nfe", "row", "item", "who")
        return Ended(**dict(zip(names, self.args, strict=True)) | more)


@contextlib.contextmanager
def naming(items: Sequence[int], what: str = "item") -> Iterator[None]:
    """Give the row of a batch that an `Ended` speaks of its number among all items."""
    try:
        yield
    except Ended as error:
        if error.row is None:
            raise
        raise error.said(item=f"{what} {items[error.row]}") from None


@contextlib.contextmanager
def unnamed(what: str) -> Iterator[None]:
    """Say what an `Ended` speaks of whose rows are no items, as points of a grid are none."""
    try:
        yield
    except Ended as error:
        raise error.said(row=None, item=what) from None


def fine(*parts: Tensor) -> bool:
    """Whether all numbers are finite, by one look at the host: their sum tells, but where it overflows itself."""
    totals = [part.sum() for part in parts]
    total = totals[0] if len(parts) == 1 else torch.stack([each.double() for each in totals]).sum()
    return math.isfinite(total.item()) or not any(bool(bad_rows(part).any()) for part in parts)


def check_ends(a: float, b: float) -> None:
    """Raise Ended where the way from a to b has no end: lam is infinite where there is no noise."""
    if not (math.isfinite(a) and math.isfinite(b)):
        raise Ended(f"the way from {a:g} to {b:g} is not finite, begun", "a larger t_min, or a smaller t_max", "lam", a)


def bad_rows(x: Tensor) -> Tensor:
    """The rows of x (B, ...) that hold a non-finite number, (B,)."""
    return ~x.isfinite().flatten(1).all(1)


def first_row(bad: Tensor) -> int:
    """The first row that is bad, of (B,)."""
    return int(bad.int().argmax())
