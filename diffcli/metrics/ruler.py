"""The distance of many sets of samples to the same data, with the scale and the noise to read it on."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.two_sample import median_distance, mmd, sliced_wasserstein

SPLITS = 16  # pairs of halves; the sd of their distances is known to 18 % (normal, 15 degrees of freedom)


class Ruler:
    """Measures sets of m samples against the same m items of data `(N, *S)`, m = min(n, N // 2), by the same directions.

    `halves` and `noise` are the mean and the sd of the distance between two disjoint sets of m items of the data, over
    random splits: what perfect samples give, and how much that varies; `splits` has each of them.
    more: other distances by their names.  known: takes what computes `splits`, and gives them; it may know them already.
    Raises UsageError for m < 2.
    """

    def __init__(
        self,
        data: Tensor,
        n: int,
        seed: int,
        more: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
        known: Callable[[Callable[[], dict[str, list[float]]]], dict[str, list[float]]] = lambda make: make(),
    ):
        self.m = min(n, len(data) // 2)
        if self.m < 2:
            raise UsageError(
                f"n={n} samples and {len(data)} items of data leave {self.m} to compare; at least 2 are needed"
            )
        self.more = more or {}
        self.seed, generator = seed, torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(data), generator=generator)[: 2 * self.m] for _ in range(SPLITS)]
        self.data = data[orders[0][: self.m]]
        self.bandwidth = median_distance(self.data)

        def splits() -> dict[str, list[float]]:
            found = [self._between(data[order[self.m :]], data[order[: self.m]]) for order in orders]
            return {name: [f[name] for f in found] for name in found[0]}

        self.splits = known(splits)
        columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.splits.items()}
        self.halves = {name: c.mean().item() for name, c in columns.items()}
        self.noise = {name: c.std().item() for name, c in columns.items()}

    def _between(self, x: Tensor, y: Tensor) -> dict[str, float]:
        directions = torch.Generator().manual_seed(self.seed)
        return {
            "sliced_wasserstein": sliced_wasserstein(x, y, generator=directions).item(),
            "mmd2": mmd(x, y, self.bandwidth).item(),
            **{name: measure(x, y).item() for name, measure in self.more.items()},
        }

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """sliced_wasserstein, mmd2 and what `more` names, of the first m samples to the data."""
        return self._between(samples[: self.m], self.data)

    def as_good(self, distances: dict[str, float], name: str = "sliced_wasserstein") -> list[str]:
        """Whose distance is not told from the best: within two sd of it, or of the halves' mean where it is below that."""
        if not distances:
            return []
        limit = max(min(distances.values()), self.halves[name]) + 2 * self.noise[name]
        return sorted((who for who, d in distances.items() if d <= limit), key=distances.get)
