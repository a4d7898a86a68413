"""The Lightning module of a classifier, and how right it is on a split."""

import math

import torch
from torch import Tensor

from diffcli.data.base import Data
from diffcli.diffusion.classifier import Classifier, CrossEntropy
from diffcli.randomness import Draw, ItemNoise
from diffcli.training.module import Steps
from diffcli.training.optim import Optim

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)  # where a classifier of noised items is tested, from t_min to t_max
NOISED_ITEMS = 2000  # of the test split at each of them, at most
TEST_BATCH = 256


class Classification(Steps):
    """Minimises the mean cross-entropy of the labels."""

    def __init__(self, classifier: Classifier, loss: CrossEntropy, data: Data, optim: Optim, *args, **kwargs):
        super().__init__(data, optim, *args, **kwargs)
        self.classifier, self.loss = classifier, loss

    @property
    def model(self):
        return self.classifier

    def losses(self, batch, draw: Draw):
        loss, right = self.loss(self.classifier, self.encoded(batch[0], draw), batch[1], draw)
        return loss, {"accuracy": right.float()}

    def results(self, average):
        """Accuracy and cross-entropy of the averaged weights on the test split; with noise also level by level."""
        self.classifier.eval()
        with average():
            found = {"test": accuracy(self.classifier, self.data, "test")}
            if (sde := self.classifier.sde) is not None:
                times = [sde.t_min + (sde.t_max - sde.t_min) * u for u in LEVELS]
                found["test_at_t"] = [
                    accuracy(self.classifier, self.data, "test", t, self.seed, NOISED_ITEMS) for t in times
                ]
        return found

    def told(self, results):
        if "test" not in results:
            return []
        found = results["test"]
        return [
            f"test accuracy {_text(found)}",
            *(f"  at t = {at['t']:.3g}: {_text(at)}" for at in results.get("test_at_t", ())),
        ]


def _text(found: dict) -> str:
    items = "held-out items" if found["held_out"] else "items that may have been trained on"
    wrong = f"{found['wrong']:,} of {found['items']:,} {items} wrong"
    if found["wrong"] == 0:  # where that error says nothing: 0.05 = (1 - q)^n
        wrong += f", so with 95 % confidence at most a share of {1 - 0.05 ** (1 / found['items']):.2g}"
    return f"{found['accuracy']:.4f} ± {found['std_err']:.4f} (s.e.; {wrong})"


@torch.no_grad()
def accuracy(
    classifier: Classifier, data: Data, split: str, t: float | None = None, seed: int = 0, limit: int | None = None
) -> dict[str, float | int | bool | None]:
    """Share of the items whose label is the likeliest, its binomial standard error `sqrt(p (1 - p) / n)`, and the mean
    cross-entropy in nats, of the first `limit` items of a split, each once, at its level's centre.

    t: of x_t, with noise that is a function of (seed, item); without it the items are clean.
    """
    items, weight = data.split(split), next(classifier.parameters())
    n = min(len(items), limit or len(items))
    right, loss = 0, 0.0
    for start in range(0, n, TEST_BATCH):
        index = range(start, min(start + TEST_BATCH, n))
        x, y = items.__getitems__(index)
        x = data.transform.encode(x).float().to(weight.device)
        log_p = _log_prob(classifier, x, t, ItemNoise(seed, index, x.shape[1:], x.dtype, weight.device))
        y = y.to(weight.device)
        right += (log_p.argmax(1) == y).sum().item()
        loss -= log_p.gather(1, y[:, None]).double().sum().item()
    p = right / n
    found = {"accuracy": p, "std_err": math.sqrt(p * (1 - p) / n), "cross_entropy": loss / n, "items": n}
    return found | {"wrong": n - right, "t": t, "held_out": data.held_out}


def _log_prob(classifier: Classifier, x: Tensor, t: float | None, noise: ItemNoise) -> Tensor:
    if t is None:
        return classifier.log_prob(x)
    time = torch.tensor(t, dtype=torch.float64)
    return classifier.log_prob(classifier.sde.perturb(x, time, noise("test")), time)
