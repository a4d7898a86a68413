"""What stays of a stream of samples, whatever its length."""

import torch
from torch import Tensor

from diffcli.data.transform import Transform
from diffcli.errors import NumericalError
from diffcli.metrics.features.base import on_levels
from diffcli.metrics.features.statistics import Collector

OFF = 0.1  # the noise that is left around a black background is less
COPIED = 0.01  # of the samples, from which on copies are said
CLIPPED = 0.01  # of the values of the samples, from which on it is said


class Taken:
    """Takes n samples in source units as they come: statistics of their features, the first `compared` of them, and counts.

    collector: what reads their features, None for none.  off_range counts the values that lie further than OFF
    of the range of the levels outside it, which saving them clips.
    """

    def __init__(self, transform: Transform, compared: int, collector: Collector | None = None):
        self.transform, self.compared, self.collector = transform, compared, collector
        self.n = self.values = self.off_range = 0
        self._first: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take a batch `(B, *S)`.  Raises NumericalError for a sample that is not finite."""
        bad = ~x.flatten(1).isfinite().all(dim=1)
        if bad.any():
            raise NumericalError(
                f"sample {self.n + int(bad.nonzero()[0])} is not finite ({int(bad.sum())} of its batch of {len(x)} are not)"
            )
        self.off_range += off_range(x, self.transform.levels)
        self.values += x.numel()
        x = on_levels(x, self.transform.levels)
        room = self.compared - sum(map(len, self._first))
        if room > 0:
            self._first.append(x[:room].clone())  # a slice would hold the whole batch
        if self.collector is not None:
            self.collector.add(x)
        self.n += len(x)

    @property
    def first(self) -> Tensor:
        """The first samples in source units, as they would be saved."""
        return torch.cat(self._first)

    @property
    def encoded(self) -> Tensor:
        """The same in model space, float64."""
        return self.transform.encode(self.first).double()


def copies(x: Tensor) -> int:
    """How many of the items x (B, *S) are equal to one before them."""
    return len(x) - len(x.flatten(1).unique(dim=0))


def off_range(x: Tensor, levels: int | None) -> int:
    """How many values of x in source units lie further than OFF of the range of the levels outside it; 0 without levels."""
    if levels is None:
        return 0
    room = OFF * (levels - 1)
    return int(((x < -room) | (x > levels - 1 + room)).sum())
