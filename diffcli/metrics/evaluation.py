"""An evaluation: samples stream in, the figures of each repeat come out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from diffcli.metrics.card import Figure
from diffcli.metrics.measures import Measure
from diffcli.metrics.taken import Taken


@dataclass
class Evaluations:
    """Network evaluations of samples, without a list of them."""

    n: int = 0
    total: int = 0
    least: int | None = None
    most: int | None = None

    def add(self, nfe: np.ndarray) -> None:
        """Count those of a batch (B,)."""
        if len(nfe) == 0:  # of samples that were not drawn here
            return
        self.n, self.total = self.n + len(nfe), self.total + int(nfe.sum())
        self.least = int(min(nfe)) if self.least is None else min(self.least, int(nfe.min()))
        self.most = int(max(nfe)) if self.most is None else max(self.most, int(nfe.max()))

    def summary(self) -> dict[str, float] | None:
        """Mean, min and max; None without samples."""
        return {"mean": self.total / self.n, "min": self.least, "max": self.most} if self.n else None


@dataclass
class Found:
    """What an evaluation leaves: figures, what was left out and why, the first repeat's samples, evaluations, clipped values."""

    figures: list[Figure]
    left_out: dict[str, str]
    first: Taken
    nfe: Evaluations
    values: int = 0
    off_range: int = 0
    labels: dict[str, str] = field(default_factory=dict)


def evaluate(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], n: int, measures: list[Measure], take: Callable[[], Taken]
) -> Found:
    """Measure batches of samples `(B, *S)` in source units with their evaluations `(B,)`; samples r n … (r + 1) n - 1 are repeat r.

    take: what gathers the samples of one repeat.  Only the first repeat's gathering is held to the end, and what a
    gathering holds does not grow with n.
    """
    nfe, first, taken, results = Evaluations(), None, None, []
    values = off_range = 0
    for x, evaluations in in_repeats(batches, n):
        taken = take() if taken is None else taken
        taken.add(torch.from_numpy(x))
        nfe.add(evaluations)
        if taken.n == n:
            results.append({k: v for measure in measures for k, v in measure(taken).items()})
            values, off_range = values + taken.values, off_range + taken.off_range
            taken.collector = None  # of large features it holds the most
            first, taken = first or taken, None
    figures = [figure for measure in measures for figure in measure.figures(results)]
    left_out = {k: v for measure in measures for k, v in measure.left_out.items()}
    labels = {k: about.label for measure in measures for k, about in measure.about.items()}
    return Found(figures, left_out, first, nfe, values, off_range, labels)


def in_repeats(batches: Iterable[tuple[np.ndarray, np.ndarray]], n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same items in pieces of which none crosses a multiple of n."""
    at = 0
    for x, nfe in batches:
        while len(x):
            size = min(len(x), n - at % n)
            yield x[:size], nfe[:size]
            x, nfe, at = x[size:], nfe[size:], at + size
