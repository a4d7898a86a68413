"""The measures of images on the features of a network: Fréchet distance, KID, precision to coverage, Inception Score."""

import hashlib

import torch
from torch import Tensor

from diffcli.data.base import Items
from diffcli.errors import UsageError
from diffcli.metrics.features.base import FeatureNetwork, digest
from diffcli.metrics.features.reference import Reference, few_samples
from diffcli.metrics.features.statistics import Collector, Statistics, collect
from diffcli.metrics.frechet import frechet
from diffcli.metrics.inception_score import SPLITS, few_of_a_class
from diffcli.metrics.kept import Keep, anew
from diffcli.metrics.kid import kid
from diffcli.metrics.measures import About, Measure, permuted
from diffcli.metrics.prdc import balls_of, prdc
from diffcli.metrics.taken import Taken

DRAWS, LEAST = 5, 2  # sets of n real items of the floor, at most and at least, where there are so many
READ = 10_000  # real items that more than the least are read of: large sets vary little, and reading them takes time
SUBSETS, SIZE = 10, 1000  # of KID; the repeats say how much it varies
K, K_DENSITY = 3, 5  # neighbours of precision and recall, and of density and coverage
CHUNK = 256  # real items read at once


class FeatureMeasures(Measure):
    """Figures on features of samples against those of a reference.

    others: real items that the reference does not hold, of which the floor is; None for no floor, and none where they are
    fewer than n.  Precision, recall, density and coverage are between as many real features as there are of samples, or all
    that are kept where those are fewer.
    labels: (N,) labels of the data that samples were drawn for, sample i that of entry i mod N, -1 none; classes: (K,) the
    class of the network's logits for each of them.  The share of the samples that the network takes for their label is then
    measured too, beside that of real items and their own.
    keep: where the figures of the floor may be kept.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        levels: int | None,
        found: Reference,
        others: Items | None,
        others_are: str,
        n: int,
        kept: int,
        labels: Tensor | None = None,
        classes: Tensor | None = None,
        keep: Keep = anew,
    ):
        super().__init__()
        self.network, self.levels, self.reference, self.n, self.kept = network, levels, found, n, kept
        self.others = others
        self.about = {
            "frechet": About(network.distance_name, "lower"),
            "kid": About(f"KID ({network.name}, unbiased)", "lower"),
            "precision": About("precision", "higher"),
            "recall": About("recall", "higher"),
            "density": About("density", "higher"),
            "coverage": About("coverage", "higher"),
        }
        if network.classes:
            self.about["inception_score"] = About(f"Inception Score ({network.name})", "higher")
        self.labels, self.classes, self.repeat = labels, classes, 0
        if labels is not None:
            self.about["agreement"] = About(f"agreement with the label ({network.name})", "higher")
        real = found.gathered.features
        self.real = real[permuted(len(real))[: min(n, kept)]]
        self.keep, self.balls = keep, None
        draws = 0 if others is None else min(DRAWS, len(others) // n, max(LEAST, READ // n))
        self.draws, times = draws, f"mean ± sd over {draws} draws" if draws > 1 else "one draw"
        self.what_floor = f"{n} images of the {others_are} split in the place of the samples, {times}"

    def collector(self) -> Collector:
        """What reads the samples of the next repeat."""
        labels = None if self.labels is None else self._class(self.labels.roll(-self.repeat * self.n))
        self.repeat += 1
        return Collector(self.network, self.levels, samples=True, kept=self.kept, labels=labels)

    def __call__(self, taken: Taken) -> dict[str, float]:
        return self._of(taken.collector.finish())

    def _class(self, label: Tensor) -> Tensor:
        return torch.where(label < 0, -1, self.classes[label])

    def _labels(self, items: Tensor) -> Tensor | None:
        """The classes of the real items of these numbers, where labels are asked for."""
        if self.labels is None:
            return None
        return self._class(torch.cat([self.others.__getitems__(part)[1] for part in items.split(CHUNK)]))

    def _of(self, statistics: Statistics) -> dict[str, float]:
        fake = statistics.gathered.features
        found = {
            "frechet": frechet(statistics.moments, self.reference.moments),
            "kid": kid(self.reference.gathered.features, fake, SUBSETS, SIZE)["mean"],
        }
        try:
            self.balls = self.balls or balls_of(self.real, K, K_DENSITY)
            around = prdc(self.real, fake, K, K_DENSITY, self.balls)
            found |= {name: getattr(around, name) for name in ("precision", "recall", "density", "coverage")}
        except UsageError as error:  # too few
            names = ("precision", "recall", "density", "coverage")
            self.left_out |= dict.fromkeys(names, error.message)
        if statistics.score is not None:
            found["inception_score"] = statistics.score.result()["mean"]
        if statistics.agreement is not None:
            found["agreement"] = statistics.agreement
        return found

    def _floor(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        order = permuted(len(self.others))
        for r in range(self.draws):
            mine = order[r * self.n : (r + 1) * self.n].sort().values
            blocks = (self.others.__getitems__(part)[0] for part in mine.split(CHUNK))
            how = dict(samples=False, kept=self.kept, labels=self._labels(mine))
            one = self._of(collect(blocks, self.network, self.levels, **how))
            for name, value in one.items():
                found.setdefault(name, []).append(value)
        return found

    def _floor_key(self) -> dict:
        """What the floor depends on: the reference's hash holds the network, and what is done before it."""
        found = hashlib.blake2b(digest_size=16)
        for part in permuted(len(self.others))[: self.draws * self.n].split(CHUNK):
            found.update(digest(self.others.__getitems__(part)[0], self._labels(part)).encode())
        numbers = {"n": self.n, "kept": self.kept, "draws": self.draws, "kid": [SUBSETS, SIZE], "balls": [K, K_DENSITY]}
        return {"what": "floor", "reference": self.reference.hash, "others": found.hexdigest(), **numbers}

    def floor(self) -> dict[str, list[float]]:
        found = self.keep(self._floor_key(), self._floor) if self.draws else {}
        said = {
            "frechet": few_samples(self.n, self.network.dim, found.get("frechet"), self.n, self.reference.moments.n),
            "inception_score": few_of_a_class(self.n, self.network.classes),
        }
        self.warnings |= {name: sentence for name, sentence in said.items() if sentence}
        return found

    def protocol(self) -> dict:
        score = {"inception_score": f"{SPLITS} splits"} if self.network.classes else {}
        return {
            "features": {
                "name": self.network.name,
                "identity": self.network.identity(),
                "dim": self.network.dim,
                "preprocessing": self.network.preprocessing(),
                "reference": self.reference.hash,
                "kept": min(self.kept, self.n),
                "kid": f"{SUBSETS} subsets of {min(SIZE, self.n, self.reference.moments.n)}",
                "neighbours": f"k = {K}, of density and coverage {K_DENSITY}; {len(self.real)} real images",
                **score,
            }
        }
