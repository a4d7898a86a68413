"""What `diffcli nll` finds in its figures: their errors, the protocol behind them, and the rows of its tables."""

import csv
import heapq
import math
from pathlib import Path

import numpy as np

from diffcli.commands.model import Model
from diffcli.commands.partial import Partial
from diffcli.commands.tally import Tally, known
from diffcli.diffusion.bound import VariationalBound

CONFIDENCE = 0.95  # of the intervals
EXTREMES = 32  # most and least likely items in the picture, each
BLOCK = 64  # rows that are taken in at once, whatever the batches: the last bits of a sum depend on it


def quantile(degrees: float) -> float:
    """Half the width of Student's t interval in standard errors; the normal's for infinitely many degrees."""
    from scipy.special import ndtri, stdtrit

    p = (1 + CONFIDENCE) / 2
    return float(ndtri(p) if math.isinf(degrees) else stdtrit(degrees, p))


class Report:
    """Everything that is kept of the items measured: sums, the strata of the bound, and candidates for the picture."""

    def __init__(
        self, model: Model, n: int, of: int, likelihood, bound: VariationalBound | None, path: Path, images: bool
    ):
        self.model, self.n, self.of, self.likelihood, self.bound = model, n, of, likelihood, bound
        self.d, self.levels = math.prod(model.shape), model.data.transform.levels
        node = model.config["likelihood"]
        self.probes = node.get("probes") if node.get("divergence") == "hutchinson" else None
        self.t = None if self.probes == 1 else quantile(math.inf if self.probes is None else self.probes - 1)
        self.tallies: dict[str, Tally] = {}
        self.parts, self.fourth, self.path = Tally(), Tally(), path
        self.images, self.most, self.least = images, [], []
        self.findings: dict[str, float] = {}
        self.at = self.written = 0  # rows taken in, and lines of the table

    def follow(self, rows: Partial) -> None:
        """Write the rows that have come since, and take them in; the bound's strata are in the column `parts`."""
        if self.written < rows.rows:
            self._write(self._columns(rows, slice(self.written, rows.rows)))
        while self.at < rows.rows and (rows.rows - self.at >= BLOCK or rows.rows == self.n):
            part = slice(self.at, self.at + BLOCK)
            self._add(self._columns(rows, part), None if self.bound is None else rows["parts"][part])

    def _columns(self, rows: Partial, part: slice) -> dict[str, np.ndarray]:
        return self._with_intervals({name: rows[name][part] for name in rows.columns if name != "parts"})

    def _write(self, columns: dict[str, np.ndarray]) -> None:
        with self.path.open("a" if self.written else "w", newline="") as file:
            writer = csv.writer(file)
            if not self.written:
                writer.writerow(["index", *columns])
            for row in zip(*(c.tolist() for c in columns.values()), strict=True):
                writer.writerow([self.written, *("" if math.isnan(v) else repr(v) for v in row)])
                self.written += 1

    def _add(self, columns: dict[str, np.ndarray], parts: np.ndarray | None) -> None:
        for name, values in columns.items():
            self.tallies.setdefault(name, Tally()).add(values)
        self.tallies.setdefault("variance", Tally()).add(columns["std_err"] ** 2)
        if parts is not None:
            self.parts.add(parts)
            self.tallies.setdefault("elbo_variance", Tally()).add(columns["elbo_std_err"] ** 2)
        self.fourth.add(columns["std_err"] ** 4)
        for i, value in enumerate(columns["log_prob"].tolist() if self.images else ()):
            self._keep(value, self.at + i)
        self.at += len(columns["log_prob"])

    def _with_intervals(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same with bits/dim and the interval that the divergence leaves, beside the figure it belongs to."""
        log_prob, std_err = columns["log_prob"], columns["std_err"]
        half = std_err * (math.nan if self.t is None else self.t)
        first = {"log_prob": log_prob, "std_err": std_err, "low": log_prob - half, "high": log_prob + half}
        if self.has_bits:
            first["bits_per_dim"] = -log_prob / (self.d * math.log(2))
        return first | {k: v for k, v in columns.items() if k not in first}

    def _keep(self, value: float, index: int) -> None:
        for heap, key in ((self.most, (value, -index)), (self.least, (-value, index))):
            push = heapq.heappush if len(heap) < EXTREMES else heapq.heappushpop
            if len(heap) < EXTREMES or key > heap[0][0]:
                push(heap, (key, index))

    def extremes(self) -> list[int]:
        """The most likely items, most likely first, then the least likely, least likely last; each item once."""
        best = sorted(self.most, reverse=True, key=lambda c: c[0])
        there = {index for _, index in best}
        worst = sorted((c for c in self.least if c[1] not in there), key=lambda c: c[0])
        return [index for _, index in [*best, *worst]]

    @property
    def has_bits(self) -> bool:
        return bool(self.levels) and self.likelihood.normalised

    @property
    def nfe(self) -> dict[str, float]:
        """Mean, min and max of the evaluations an item took, the bound's among them."""
        found = [self.tallies[k] for k in ("nfe", "elbo_nfe") if k in self.tallies]
        return {
            "mean": float(sum(t.mean for t in found)),
            "min": int(sum(t.min for t in found)),
            "max": int(sum(t.max for t in found)),
        }

    def divergence(self) -> tuple[float | None, float | None]:
        """The standard error that the divergence estimate leaves on the mean, and half its interval.

        Items have probes of their own, so their variances add; the degrees of freedom are Welch and Satterthwaite's.
        """
        variance = known(self.tallies["variance"].mean)
        if variance is None or variance == 0:
            return variance, variance
        error = math.sqrt(variance / self.n)
        if self.probes is None:
            return error, error * quantile(math.inf)
        degrees = self.n * (self.probes - 1) * variance**2 / float(self.fourth.mean)
        return error, error * quantile(degrees)

    def results(self) -> dict:
        """For run.json."""
        t, scale = self.tallies, self.d * math.log(2)
        error, half = self.divergence()
        se = known(t["log_prob"].standard_error)
        found = {
            "n": self.n,
            "dimensions": self.d,
            "normalised": self.likelihood.normalised,
            "log_prob_mean": float(t["log_prob"].mean),
            "log_prob_standard_error": se,
            "divergence_std_err_mean": known(t["std_err"].mean),
            "divergence_error_of_mean": error,
            "divergence_half_interval_of_mean": half,
            "solver_err_mean": known(t["solver_err"].mean),
            "truncation_mean": known(t["truncation"].mean),
            "path_gap_mean": known(t["path_gap"].mean),
            **self.findings,
        }
        if self.likelihood.normalised:
            found["nats_per_dim"] = -found["log_prob_mean"] / self.d
        if self.has_bits:
            found |= {
                "bits_per_dim": -found["log_prob_mean"] / scale,
                "bits_per_dim_standard_error": None if se is None else se / scale,
            }
        if "effective_samples" in t:
            found["dequantize_effective_samples"] = float(t["effective_samples"].mean)
        if self.bound is not None:
            found["elbo"] = self._elbo()
        return found | {"protocol": self.protocol()}

    def _elbo(self) -> dict:
        t, scale = self.tallies, self.d * math.log(2)
        se, left = known(t["elbo"].standard_error), known(t["elbo_variance"].mean)
        found = {
            "nats": float(t["elbo"].mean),
            "standard_error": se,
            "monte_carlo_error": None if left is None else math.sqrt(left / self.n),
            "prior": float(t["elbo_prior"].mean),
            "steps": float(t["elbo_steps"].mean),
            "reconstruction": float(t["elbo_reconstruction"].mean),
        }
        if self.levels:
            found |= {"bits_per_dim": found["nats"] / scale}
            found |= {"bits_per_dim_standard_error": None if se is None else se / scale}
        return found

    def protocol(self) -> dict:
        """What must be equal for two such figures to be compared."""
        config, sde = self.model.config, self.model.denoiser.sde
        levelled = bool(self.levels)
        importance = levelled and config["dequantize"] == "importance"
        found = {
            "items": f"{self.n} of {self.of} of the {config['split']} split in file order, each once, no flips",
            "levels": self.levels,
            "dequantize": config["dequantize"] if levelled else None,
            "dequantize_samples": config["dequantize_samples"] if importance else None,
            "t_min": sde.t_min if sde.is_process else None,
            "prior_std": sde.prior_std if sde.is_process else None,
            "given": {name: config[name] for name in ("label", "vector") if config.get(name) is not None},
            "likelihood": {k: v for k, v in config["likelihood"].items() if k != "_target_"},
            "interval": CONFIDENCE,
            "weights": config["weights"],
            "dtype": config["dtype"],
            "seed": config["seed"],
        }
        if self.bound is not None:
            found["elbo"] = {
                "bound": type(self.bound).__name__,
                "times": self.bound.times,
                "decoder": "bin" if self.bound.levels else "density",
                **{k: getattr(self.bound, k) for k in ("T", "variance") if hasattr(self.bound, k)},
            }
        return found

    def strata(self) -> dict[str, np.ndarray]:
        """The bound over t, a row for each stratum: its ends, what it holds, and the mean of a term there with its error."""
        low, high, measure = (a.numpy() for a in self.bound.strata(self.model.denoiser.sde))
        error = self.parts.standard_error
        return {
            "t_low": low,
            "t_high": high,
            "measure": measure,
            "mean": self.parts.mean / measure,
            "std_err": np.full(len(low), math.nan) if error is None else error / measure,
            "sum": self.parts.mean,
        }

    def write_strata(self, path: Path) -> None:
        columns = self.strata()
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in zip(*(c.tolist() for c in columns.values()), strict=True):
                writer.writerow(["" if math.isnan(v) else repr(v) for v in row])
