"""What `diffcli nll` finds in its figures: their errors, the protocol behind them, and the rows of its tables."""

import csv
import heapq
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.commands.model import Model
from diffcli.commands.nll_measure import Measured
from diffcli.commands.tally import Tally, known
from diffcli.diffusion.bound import VariationalBound

CONFIDENCE = 0.95  # of the intervals
EXTREMES = 32  # most and least likely items in the picture, each


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
        self.parts, self.fourth, self.path, self.begun = Tally(), Tally(), path, False
        self.images, self.most, self.least = images, [], []

    def add(self, batch: Measured) -> None:
        """Take in a batch, and write its rows."""
        columns = self._with_intervals(batch.columns)
        for name, values in columns.items():
            self.tallies.setdefault(name, Tally()).add(values)
        self.tallies.setdefault("variance", Tally()).add(columns["std_err"] ** 2)
        if batch.parts is not None:
            self.parts.add(batch.parts)
            self.tallies.setdefault("elbo_variance", Tally()).add(columns["elbo_std_err"] ** 2)
        self.fourth.add(columns["std_err"] ** 4)
        with self.path.open("a" if self.begun else "w", newline="") as file:
            writer = csv.writer(file)
            if not self.begun:
                writer.writerow(["index", *columns])
                self.begun = True
            for i, row in enumerate(zip(*(c.tolist() for c in columns.values()), strict=True)):
                writer.writerow([batch.first + i, *("" if math.isnan(v) else repr(v) for v in row)])
        if self.images:
            for i, value in enumerate(columns["log_prob"].tolist()):
                self._keep(value, batch.first + i, batch.x[i])

    def _with_intervals(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same with bits/dim and the interval that the divergence leaves, beside the figure it belongs to."""
        log_prob, std_err = columns["log_prob"], columns["std_err"]
        half = std_err * (math.nan if self.t is None else self.t)
        first = {"log_prob": log_prob, "std_err": std_err, "low": log_prob - half, "high": log_prob + half}
        if self.has_bits:
            first["bits_per_dim"] = -log_prob / (self.d * math.log(2))
        return first | {k: v for k, v in columns.items() if k not in first}

    def _keep(self, value: float, index: int, x: Tensor) -> None:
        # x is copied: a view would keep the whole batch
        for heap, key in ((self.most, (value, -index)), (self.least, (-value, index))):
            push = heapq.heappush if len(heap) < EXTREMES else heapq.heappushpop
            if len(heap) < EXTREMES or key > heap[0][0]:
                push(heap, (key, index, x.clone()))

    def extremes(self) -> np.ndarray:
        """The most likely items, most likely first, then the least likely, least likely last; each item once."""
        best = sorted(self.most, reverse=True, key=lambda c: c[0])
        there = {index for _, index, _ in best}
        worst = sorted((c for c in self.least if c[1] not in there), key=lambda c: c[0])
        return torch.stack([x for _, _, x in [*best, *worst]]).numpy()

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
            **self.likelihood.findings(),
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
