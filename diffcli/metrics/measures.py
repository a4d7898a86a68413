"""The measures of an evaluation: what samples give, and what real items give at the same count."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from diffcli.data.base import Items
from diffcli.data.transform import Transform
from diffcli.diffusion.exact import GaussianMixture
from diffcli.errors import UsageError
from diffcli.metrics.card import Figure
from diffcli.metrics.energy_distance import energy_distance
from diffcli.metrics.features.base import digest
from diffcli.metrics.kept import Keep, anew
from diffcli.metrics.known_density import kl_to_density
from diffcli.metrics.mode_coverage import mode_coverage
from diffcli.metrics.ruler import SPLITS, Ruler
from diffcli.metrics.taken import Taken
from diffcli.randomness import key

POOL = 10_000  # items that halves of the data are drawn from: float64 of all would not fit
HELD = 2**26  # numbers of them, 0.5 GB; large images are fewer
ORDER = 0  # seed of every choice among real items: a protocol has no seed of the samples' in it


@dataclass
class About:
    """How a measure is shown, and which of its values is better."""

    label: str
    better: Literal["lower", "higher"]


class Measure(ABC):
    """Some figures of samples against data.  about: of each, in the order shown; what_floor: how the real items were drawn."""

    about: dict[str, About]
    what_floor: str

    def __init__(self):
        self.warnings: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    @abstractmethod
    def __call__(self, taken: Taken) -> dict[str, float]:
        """The figures of one repeat."""

    @abstractmethod
    def floor(self) -> dict[str, list[float]]:
        """The same of real items, a value a draw; without those that have none."""

    def protocol(self) -> dict:
        """Fields that two evaluations must share."""
        return {}

    def figures(self, repeats: list[dict[str, float]]) -> list[Figure]:
        """Its part of the card; a figure that a repeat lacks, or that is not finite, is left out with a sentence."""
        floor, found = self.floor(), []
        for name, about in self.about.items():
            values = [r[name] for r in repeats if math.isfinite(r.get(name, math.nan))]
            if len(values) < len(repeats):
                self.left_out.setdefault(name, "it is not finite")
                continue
            real, warning = floor.get(name, []), self.warnings.get(name, "")
            what = self.what_floor if real else ""
            found.append(Figure(name, about.label, about.better, values, real, what, warning))
        return found


class TwoSample(Measure):
    """Sliced Wasserstein distance and MMD², and of points (`energy`) the energy distance too, of the first samples.

    keep: where the distances of real items to real items may be kept.
    """

    def __init__(self, items: Items, transform: Transform, n: int, compared: int, energy: bool, keep: Keep = anew):
        super().__init__()
        more = {"energy_distance": energy_distance} if energy else {}
        pool, m = max(min(POOL, HELD // items[0][0].numel()), 2 * compared), min(n, compared)
        drawn = {"items": m, "levels": transform.levels, "splits": SPLITS, "order": ORDER}
        x = some(items, pool)
        self.ruler = Ruler(
            transform.encode(x).double(),
            m,
            ORDER,
            more,
            lambda make: keep({"what": "halves", "data": digest(x), **drawn, "more": sorted(more)}, make),
        )
        self.about = {
            "sliced_wasserstein": About("sliced Wasserstein", "lower"),
            "mmd2": About("MMD^2 (unbiased)", "lower"),
            **({"energy_distance": About("energy distance (unbiased)", "lower")} if energy else {}),
        }
        self.what_floor = (
            f"two disjoint sets of {self.ruler.m} items of the data, mean ± sd over {SPLITS} random splits"
        ) + _the_first(self.ruler.m, n)

    def __call__(self, taken: Taken) -> dict[str, float]:
        return self.ruler(taken.encoded)

    def floor(self) -> dict[str, list[float]]:
        return self.ruler.splits

    def protocol(self) -> dict:
        return {"compared": self.ruler.m}


class KnownDensity(Measure):
    """Of samples whose law is known, a mixture: KL to it, and how its modes are reached."""

    DRAWS = 8  # sets of exact draws of the floor
    about = {
        "kl": About("KL(samples ‖ density), nats", "lower"),
        "covered_modes": About("modes covered", "higher"),
        "mode_weights": About("weights of the modes, total variation", "lower"),
        "between_modes": About("share of the samples between modes", "lower"),
    }
    excess = About("KL above that of exact draws, nats", "lower")

    def __init__(self, mixture: GaussianMixture, n: int, compared: int):
        super().__init__()
        self.mixture, self.n = mixture, min(n, compared)
        self.what_floor = f"{self.n} exact draws of the density, mean ± sd over {self.DRAWS} draws" + _the_first(
            self.n, n
        )

    def __call__(self, taken: Taken) -> dict[str, float]:
        return self._of(taken.first)

    def _of(self, x: Tensor) -> dict[str, float]:
        modes = mode_coverage(x, self.mixture)
        found = {
            "covered_modes": float(modes.covered),
            "mode_weights": modes.total_variation,
            "between_modes": modes.between,
        }
        if modes.missing:
            self.warnings["covered_modes"] = f"almost no samples are near the modes {modes.missing}"
        try:
            found["kl"] = kl_to_density(x.flatten(1), self.mixture.log_prob).kl
        except UsageError as error:  # too few, or copies of each other
            self.left_out["kl"] = error.message
        return found

    def floor(self) -> dict[str, list[float]]:
        generator = torch.Generator().manual_seed(ORDER)
        warnings = dict(self.warnings)  # of the samples, not of these
        found = [self._of(self.mixture.sample(self.n, generator)[0]) for _ in range(self.DRAWS)]
        self.warnings = warnings
        return {name: [f[name] for f in found] for name in found[0]}

    def figures(self, repeats: list[dict[str, float]]) -> list[Figure]:
        """As of every measure, and the KL without what the estimator gives exact draws as well, about n^(-2/d) nats."""
        found = super().figures(repeats)
        kl = next((f for f in found if f.name == "kl"), None)
        if kl is None or not kl.floor:
            return found
        values, floor = ([v - kl.floor_mean for v in of] for of in (kl.values, kl.floor))
        excess = replace(kl, name="kl_excess", label=self.excess.label, values=values, floor=floor)
        at = found.index(kl) + 1
        return [*found[:at], excess, *found[at:]]

    def protocol(self) -> dict:
        return {"compared_with_density": self.n}


def _the_first(m: int, n: int) -> str:
    """Said where not all n samples of a repeat are looked at."""
    return f"; of the samples, too, the first {m} of each repeat alone" if m < n else ""


def fitting(compared: int, shape: tuple[int, ...]) -> int:
    """As many items of a shape as two sets of them take HELD numbers, `compared` at most and 2 at least."""
    return max(2, min(compared, HELD // (2 * math.prod(shape))))


def some(items: Items, count: int) -> Tensor:
    """`count` items in source units, or all of them where there are fewer: the same choice each time, in a mixed order."""
    return items.__getitems__(permuted(len(items))[:count])[0]


def permuted(count: int) -> Tensor:
    """The numbers 0 … count - 1 in a mixed order, the same each time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(key("mixed", count) % 2**63))
