"""Means and errors of a stream of numbers, of which nothing else is kept."""

import math

import numpy as np


class Tally:
    """Count, mean, spread, least and greatest of values (n, *S) that come in batches along their first axis.

    The mean of squared deviations is merged, not summed: no digits are lost to a large mean.  Chan et al. 1983.
    """

    def __init__(self):
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.min, self.max = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        values = np.asarray(values, dtype=np.float64)
        n, mean = len(values), values.mean(0)
        step, total = mean - self.mean, self.n + n
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + step**2 * self.n * n / total
        self.mean, self.n = self.mean + step * n / total, total
        self.min, self.max = min(self.min, values.min()), max(self.max, values.max())

    @property
    def standard_error(self) -> float | np.ndarray | None:
        """Of the mean, None for one value."""
        return np.sqrt(self.squares / (self.n - 1) / self.n) if self.n > 1 else None


def known(value: float | np.ndarray) -> float | None:
    """A number for a record, None where it is not known."""
    return float(value) if value is not None and np.isfinite(value) else None
