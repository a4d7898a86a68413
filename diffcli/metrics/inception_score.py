"""Inception Score: how sure a classifier is of each image, and how evenly it uses its classes."""

import torch
from torch import Tensor

from diffcli.errors import NumericalError, UsageError
from diffcli.randomness import key

SPLITS = 10


class ScoreSums:
    """`IS = exp(E_x KL(p(y|x) || p(y))) = exp(H(y) - H(y|x))` in [1, C], from the sums of p and of p log p in each split.

    Items go to the splits in turn, in an order shuffled for each round, so that neither sorted classes nor classes in turn
    leave a split with one class; the sums take the memory of splits C numbers, whatever n (Salimans et al. 2016, §4,
    arXiv:1606.03498: 10 splits, mean and sd over them).
    """

    def __init__(self, classes: int, splits: int = SPLITS):
        if splits < 1:
            raise UsageError(f"splits={splits} is below 1")
        self.splits, self.n = splits, 0
        self.p = torch.zeros(splits, classes, dtype=torch.float64)
        self.plogp = torch.zeros(splits, dtype=torch.float64)
        self.count = torch.zeros(splits, dtype=torch.int64)

    def add(self, logits: Tensor) -> None:
        """Take the logits (B, C) of the next items.  Raises NumericalError where they are not finite."""
        if not logits.isfinite().all():
            raise NumericalError("the logits of the Inception Score are not finite")
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        split = split_of(torch.arange(self.n, self.n + len(p)), self.splits)
        self.p.index_add_(0, split, p)
        # p log p is 0 at p = 0, where log p of a far logit is large but finite
        self.plogp.index_add_(0, split, (p * log_p).sum(1))
        self.count += split.bincount(minlength=self.splits)
        self.n += len(p)

    def result(self) -> dict[str, float]:
        """mean and sd over the splits that have items (sd as numpy's, of the population; nan with one split)."""
        used = self.count > 0
        if not used.any():
            raise UsageError("the Inception Score needs at least one item")
        count = self.count[used].double()
        p = self.p[used] / count[:, None]
        entropy = -torch.special.xlogy(p, p).sum(1)
        scores = (entropy + self.plogp[used] / count).exp()
        sd = scores.std(correction=0).item() if len(scores) > 1 else float("nan")
        return {"mean": scores.mean().item(), "sd": sd, "splits": len(scores)}


def few_of_a_class(n: int, classes: int, splits: int = SPLITS) -> str:
    """The sentence that stands beside a score of n items, "" where each split has ten items a class or there are no classes.

    Of N items `log IS` is too low by `E KL(mean p || p(y)) <= log(1 + (C - 1)/N)` on average, the more the surer the classifier is.
    """
    each = max(1, n // splits)
    if each >= 10 * classes:
        return ""
    low = 1 - 1 / (1 + (classes - 1) / each)
    return (
        f"each of its {min(n, splits)} splits has {each} items for {classes} classes,"
        f" so it is biased downwards, by {low:.0%} at most on average: compare it at the same n only"
    )


def split_of(items: Tensor, splits: int) -> Tensor:
    """The split of each item number: each `splits` items in a row go one to each, in an order of their own."""
    rounds = (items // splits).unique()
    orders = {}
    for r in rounds.tolist():
        generator = torch.Generator().manual_seed(key("split", r) % 2**63)
        orders[r] = torch.randperm(splits, generator=generator)
    return torch.stack([orders[i // splits][i % splits] for i in items.tolist()]) if len(items) else items


def inception_score(logits: Tensor, splits: int = SPLITS) -> dict[str, float]:
    """The mean and sd of the Inception Score over splits of the items, from logits (n, C); see ScoreSums."""
    sums = ScoreSums(logits.shape[1], splits)
    sums.add(logits)
    return sums.result()
