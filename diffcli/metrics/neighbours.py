"""Whether samples are copies of the training items: their nearest neighbours beside those of held-out items."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.nearest import Nearest

MOST = 10_000  # samples, and held-out items, that are looked at
COPY = 1 / 3  # of the distance to the second nearest item
LEVEL = 0.005  # of a test; there are two ways to the verdict, so good samples get it once in 100 times at most
LEAN = 0.55  # least auc of samples called closer: with enough of them MNIST's training digits have 0.51 significantly

# samples (c, *S), their distances (c, 3), the indices of their items (c, 3), and their own numbers (c,)
Shown = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Memorisation:
    """What the nearest neighbours of n samples among N training items say, beside those of m held-out items.

    distance, distance_held_out: median distance to the nearest training item.  closer: the part of the samples nearer than
    the `quantile` of the held-out distances, which perfect samples are with that frequency.  auc: the probability that a
    sample is nearer than a held-out item is, ½ for perfect samples, and its p (Mann–Whitney, one-sided).
    copies, copies_held_out: the part nearer to their nearest than a third of the distance to their second nearest item, and
    copies_p, of Fisher's exact test that it is the same, one-sided.
    own: the part of the samples whose nearest among training and held-out items together is a training item; own_expected
    is N / (N + m), what it is for samples of any law that does not know which items were trained on, and own_p its p (one-sided,
    over permutations of that label).  copied: the part of the samples that own exceeds it by, (own - expected) / (1 - expected).
    None where there are no held-out items.
    """

    n: int
    training: int
    held_out: int
    quantile: float
    distance: float
    copies: float
    memorised: bool | None
    verdict: str
    distance_held_out: float | None = None
    closer: float | None = None
    closer_std_err: float | None = None
    auc: float | None = None
    p: float | None = None
    copies_held_out: float | None = None
    copies_p: float | None = None
    own: float | None = None
    own_expected: float | None = None
    own_p: float | None = None
    copied: float | None = None
    copied_std_err: float | None = None


class MemorisationCheck:
    """Gathers samples, in any number of batches, and compares their nearest training items with those of held-out items.

    training, held_out: data sets or tensors `(N, *S)`, in the units of the samples; held_out None where there are none.
    embed: a batch to the space where distances are taken, for items and samples alike (pixels as they are if None).
    At most MOST samples are looked at, the first, and as many held-out items, always the same choice; three distances of each
    are all that is kept, with the samples themselves of those that are shown.  Raises UsageError for fewer than 3 training items.
    Meehan et al. 2020, arXiv:2004.05675 (the test of distances); Yoon et al. 2023 (the ratio of a third).
    """

    def __init__(
        self, training, held_out=None, embed: Callable[[Tensor], Tensor] | None = None, most: int = MOST, shown: int = 8
    ):
        self.search, self.embed, self.most, self.shown = Nearest(training, 3, embed), embed, most, shown
        self.held_out = self.other = None
        if held_out is not None:
            m = min(len(held_out), most)
            if m < 2:
                raise UsageError(f"{m} held-out items are too few to compare with; at least 2 are needed")
            # mixed: the first half of the test set of MNIST is of other writers than the second
            chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:m]
            items = held_out[chosen] if isinstance(held_out, Tensor) else held_out.__getitems__(chosen)[0]
            self.other = Nearest(items, 1, embed)
            self.held_out = self._pieces(self.search, items)[0]
        self._found: list[tuple[Tensor, Tensor]] = []
        self._to_others: list[tuple[Tensor, Tensor]] = []
        self._first: Shown | None = None
        self._closest: Shown | None = None
        self.n = 0

    def _pieces(self, search: Nearest, x: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = search(x if self.embed is None else self.embed(x))
        return distances.cpu(), indices.cpu()

    def add(self, samples: Tensor) -> None:
        """Look at samples `(B, *S)` as well; those beyond the first MOST are passed over."""
        samples = samples[: self.most - self.n]
        if len(samples) == 0:
            return
        distances, indices = self._pieces(self.search, samples)
        self._found.append((distances, indices))
        if self.other is not None:
            d, i = self._pieces(self.other, samples)
            self._to_others.append((d[:, 0], i[:, 0]))
        rows = (samples.cpu(), distances, indices, torch.arange(self.n, self.n + len(samples)))
        first, every = (_join(before, rows) for before in (self._first, self._closest))
        order = every[1][:, 0].argsort(stable=True)[: self.shown]
        self._first = tuple(a[: self.shown].clone() for a in first)
        self._closest = tuple(a[order] for a in every)
        self.n += len(samples)

    def closest(self) -> Shown:
        """The samples nearest to a training item, nearest first."""
        self._at_least_one()
        return self._closest

    def first(self) -> Shown:
        """The first samples."""
        self._at_least_one()
        return self._first

    @property
    def distances(self) -> Tensor:
        """Of each sample to its 3 nearest training items, `(n, 3)`."""
        self._at_least_one()
        return torch.cat([d for d, _ in self._found])

    def training_items(self, indices) -> Tensor:
        """The training items of these indices, in their own units."""
        items = self.search.items
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return items[indices] if isinstance(items, Tensor) else items.__getitems__(indices)[0]

    def result(self, quantile: float = 0.05) -> Memorisation:
        """Judge what was added.  Raises UsageError for no sample, and for a quantile outside (0, 1)."""
        self._at_least_one()
        if not 0 < quantile < 1:
            raise UsageError(f"the quantile must lie between 0 and 1, not at {quantile}")
        distances, indices = self.distances, torch.cat([i for _, i in self._found])
        nearest, copies = distances[:, 0], _copies(distances)
        found = Memorisation(
            n=self.n,
            training=len(self.search),
            held_out=0,
            quantile=quantile,
            distance=nearest.median().item(),
            copies=copies,
            memorised=None,
            verdict="there are no held-out items, so nothing tells whether the samples are nearer than they should be",
        )
        if self.held_out is None:
            return found
        held_out = self.held_out[:, 0]
        found.held_out, found.distance_held_out = len(held_out), held_out.median().item()
        found.copies_held_out = _copies(self.held_out)
        found.copies_p = _more(found.copies, self.n, found.copies_held_out, len(held_out))
        found.closer = (nearest < held_out.quantile(quantile)).double().mean().item()
        share = quantile * (1 - quantile)
        found.closer_std_err = math.sqrt(share * (1 / self.n + 1 / len(held_out)))
        found.auc, found.p = _nearer(nearest, held_out)
        self._owners(found, nearest, indices[:, 0])
        _judge(found)
        return found

    def _owners(self, found: Memorisation, nearest: Tensor, item: Tensor) -> None:
        """How often the nearest of all items is a training item: labels are exchangeable for a model that knows none."""
        d, other = (torch.cat(parts) for parts in zip(*self._to_others, strict=True))
        ours = (nearest < d).double() + 0.5 * (nearest == d)
        n, m = len(self.search), found.held_out
        wins = torch.cat(
            [
                torch.zeros(n, dtype=torch.float64).index_add_(0, item, ours),
                torch.zeros(m, dtype=torch.float64).index_add_(0, other, 1 - ours),
            ]
        )
        found.own, found.own_expected = ours.mean().item(), n / (n + m)
        # the sum over n of n + m counts drawn without replacement; items that are nearest to many make it vary more
        sd = math.sqrt(n * m / (n + m) * wins.var().item()) / self.n
        z = (found.own - found.own_expected) / sd if sd > 0 else 0.0
        found.own_p = 0.5 * math.erfc(z / math.sqrt(2))
        found.copied = (found.own - found.own_expected) / (1 - found.own_expected)
        found.copied_std_err = sd / (1 - found.own_expected)

    def _at_least_one(self) -> None:
        if self.n == 0:
            raise UsageError("there are no samples whose neighbours could be looked at")


def _join(before: Shown | None, rows: Shown) -> Shown:
    return rows if before is None else tuple(torch.cat(pair) for pair in zip(before, rows, strict=True))


def _copies(distances: Tensor) -> float:
    """The part with `d1 < d2 / 3`, or `d1 = 0`: an item that is there twice leaves no ratio."""
    return ((distances[:, 0] < COPY * distances[:, 1]) | (distances[:, 0] == 0)).double().mean().item()


def _nearer(x: Tensor, y: Tensor) -> tuple[float, float]:
    """`P(x < y) + P(x = y) / 2`, and the one-sided p of the Mann–Whitney test that it is ½."""
    from scipy.stats import mannwhitneyu

    u = mannwhitneyu(y.numpy(), x.numpy(), alternative="greater", method="asymptotic")
    return float(u.statistic) / (len(x) * len(y)), float(u.pvalue)


def _more(x: float, n: int, y: float, m: int) -> float:
    """The one-sided p of Fisher's exact test that the parts x of n and y of m are one."""
    from scipy.stats import hypergeom

    a, b = round(x * n), round(y * m)
    return float(hypergeom.sf(a - 1, n + m, a + b, n))


def _judge(found: Memorisation) -> None:
    """Samples may be near to training items because they are few and typical, but then they are near to held-out items as
    well; and where only some are copies, the ratio shows them first."""
    nearer, copied = found.p < LEVEL and found.auc > LEAN, found.copies_p < LEVEL
    # without copies `expected` samples are nearest to a held-out item; with so few, none at all would be no surprise
    expected = found.n * (1 - found.own_expected)
    telling = expected > -math.log(LEVEL)
    found.memorised = copied or (nearer and (found.own_p < LEVEL or not telling))
    tell = "samples are closer to the training items than held-out items are"
    if copied:
        part = f"{found.copies:.1%} of them lie within a third of the distance to the second nearest training item"
        found.verdict = f"{tell}: memorised ({part}; {found.copies_held_out:.1%} of held-out items do)"
    elif not nearer:
        hardly = "hardly any" if found.p < LEVEL else "no"
        found.verdict = f"samples are {hardly} closer to the training items than held-out items are: not memorised"
    elif not telling:
        found.verdict = f"{tell}: memorised, or of too little variety; more held-out items would tell which"
    elif found.memorised:
        found.verdict = f"{tell}: memorised (about {min(found.copied, 1):.0%} of them)"
    else:
        found.verdict = f"{tell}, but no closer than to items held out: of too little variety, not memorised"
