"""What a set of items leaves behind: moments that stream and merge, and the features of some of them.

Items are read in blocks of one size wherever the batches end, so that a result does not depend on the batch size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.features.base import FeatureNetwork, check_items, on_levels
from diffcli.metrics.inception_score import ScoreSums
from diffcli.randomness import key

BLOCK = 128  # items that a network reads at once
KEPT = 10_000  # items whose features are kept


class Moments:
    """n, mean (D,) and covariance (D, D) of vectors, in float64, memory D².

    Two sets a and b merge with `delta = mean_b - mean_a`: `mean = mean_a + delta n_b/n`,
    `scatter = scatter_a + scatter_b + delta delta^T n_a n_b/n` (Chan, Golub & LeVeque 1979), which loses no digits to a large mean.
    """

    def __init__(self, n: int, mean: Tensor, scatter: Tensor):
        self.n, self.mean, self.scatter = n, mean, scatter

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Of vectors x (B, D)."""
        x = x.double()
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def cov(self) -> Tensor:
        """The unbiased covariance `scatter / (n - 1)`.  Raises UsageError for fewer than 2 items."""
        if self.n < 2:
            raise UsageError(f"a covariance needs at least 2 items, not {self.n}")
        return self.scatter / (self.n - 1)

    def merge(self, other: "Moments") -> "Moments":
        """Those of both sets together; which comes first changes the last bits only."""
        if self.dim != other.dim:
            raise UsageError(f"features of {self.dim} and of {other.dim} dimensions are not of one network")
        n, delta = self.n + other.n, other.mean - self.mean
        # in the one scatter: a new (D, D) for each block would cost as much as its product
        scatter = (self.scatter + other.scatter).addr_(delta, delta, alpha=self.n * other.n / n)
        return Moments(n, self.mean + delta * (other.n / n), scatter)

    def without(self, part: "Moments") -> "Moments":
        """Those of the items that are left where `part` of them is taken out, the inverse of `merge`."""
        n = self.n - part.n
        if n < 1:
            raise UsageError(f"{part.n} of {self.n} items leave none")
        mean = (self.mean * self.n - part.mean * part.n) / n
        delta = part.mean - mean
        return Moments(n, mean, (self.scatter - part.scatter).addr_(delta, delta, alpha=-n * part.n / self.n))


@dataclass
class Gathered:
    """Features (K, D) of some of the items, and which they are, (K,)."""

    features: Tensor
    index: Tensor


@dataclass
class Statistics:
    """What a set of items leaves: moments of all, features of some, sums for the Inception Score where there are logits.

    agreement: the share of the items with a wanted label that the network takes for it, None where none was wanted.
    """

    moments: Moments
    gathered: Gathered
    score: ScoreSums | None
    agreement: float | None = None


class Collector:
    """Takes items as they come and leaves Statistics; its memory does not grow with their number.

    samples: the items are rounded and clipped to their levels, as they would be saved; otherwise one outside is refused.
    kept: items whose features are kept: the first ones, or with `of` a random choice among that many (the same each time).
    labels: (N,) classes of the network's logits that items are wanted to be of, item i that of entry i mod N, -1 any.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        levels: int | None,
        samples: bool,
        kept: int = KEPT,
        of: int | None = None,
        splits: int = 10,
        labels: Tensor | None = None,
    ):
        self.labels, self.wanted, self.agreed = labels, 0, 0
        self.network, self.levels, self.samples, self.splits = network, levels, samples, splits
        count = kept if of is None else min(kept, of)
        self.chosen = torch.arange(count)
        if of is not None and of > kept:  # a sorted folder's first items are of one class
            generator = torch.Generator().manual_seed(key("kept", of) % 2**63)
            self.chosen = torch.randperm(of, generator=generator)[:kept].sort().values
        self.n = 0
        self._waiting: list[Tensor] = []
        self._moments: Moments | None = None
        self._rows: list[Tensor] = []
        self._index: list[Tensor] = []
        self._score: ScoreSums | None = None

    def add(self, x: Tensor) -> None:
        """Take items x (B, *S) in source units.  Raises NumericalError and UsageError as `FeatureNetwork.read`."""
        x = torch.as_tensor(x)
        # before an infinite value is clipped to the last level
        check_items(x, None if self.samples else self.levels, self.n + sum(map(len, self._waiting)))
        self._waiting.append(on_levels(x, self.levels) if self.samples else x)
        while sum(map(len, self._waiting)) >= BLOCK:
            waiting = torch.cat(self._waiting)
            self._waiting = (
                [waiting[BLOCK:].clone()] if len(waiting) > BLOCK else []
            )  # a view would hold the whole batch
            self._read(waiting[:BLOCK])

    def finish(self) -> Statistics:
        """The statistics of all items that were added.  Raises UsageError where there were none."""
        if self._waiting:
            self._read(torch.cat(self._waiting))
            self._waiting = []
        if self._moments is None:
            raise UsageError("there are no items to take statistics of")
        gathered = Gathered(torch.cat(self._rows), torch.cat(self._index))
        agreement = self.agreed / self.wanted if self.wanted else None
        return Statistics(self._moments, gathered, self._score, agreement)

    def _read(self, x: Tensor) -> None:
        # the last block is filled up: a kernel's last bits depend on the number of items it is given
        full = torch.cat([x, x[:1].expand(BLOCK - len(x), *x.shape[1:])])
        features, logits = self.network.read(full, self.levels)
        features = features[: len(x)]
        block = Moments.of(features)
        self._moments = block if self._moments is None else self._moments.merge(block)
        mine = self.chosen[(self.chosen >= self.n) & (self.chosen < self.n + len(x))]
        self._rows.append(features[mine - self.n])
        self._index.append(mine)
        if logits is not None:
            self._score = self._score or ScoreSums(logits.shape[1], self.splits)
            self._score.add(logits[: len(x)])
            if self.labels is not None:
                wanted = self.labels[torch.arange(self.n, self.n + len(x)) % len(self.labels)]
                self.wanted += int((wanted >= 0).sum())
                self.agreed += int((logits[: len(x)].argmax(1) == wanted).sum())
        self.n += len(x)


def collect(batches: Iterable[Tensor], network: FeatureNetwork, levels: int | None, samples: bool, **how) -> Statistics:
    """The statistics of batches of items x (B, *S), by a Collector."""
    collector = Collector(network, levels, samples, **how)
    for x in batches:
        collector.add(x)
    return collector.finish()
