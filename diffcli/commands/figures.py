"""The figures that a run's record holds, by what they are judged, and what is good."""

import math
from dataclasses import dataclass

HIGHER = ("precision", "recall", "density", "coverage", "inception_score", "agreement", "accuracy")
# the figure that a command's runs are ordered by, the first that is there
MAIN = {
    "train": ("val_loss", "loss"),
    "nll": ("bits_per_dim", "nats_per_dim"),
    "evaluate": ("frechet", "sliced_wasserstein"),
    "sample": ("sampling_seconds",),
}
TRAIN = ("val_loss", "best_val_loss", "loss")


@dataclass(frozen=True)
class Value:
    """A figure with one standard error (nll, accuracies) or the standard deviation of repeats (evaluate), where it has one."""

    value: float
    error: float | None = None

    @property
    def sound(self) -> bool:
        return math.isfinite(self.value)


def better(name: str) -> str:
    """Whether less or more of a figure is good."""
    return "higher" if name.rpartition(".")[2] in HIGHER else "lower"


def figures(record: dict) -> dict[str, Value]:
    """Every figure of a record that runs of its command can be compared by, in the order shown."""
    results, command = record.get("results") or {}, record.get("command")
    found: dict[str, Value] = {}
    if command == "train":
        found |= {name: _value(results.get(name)) for name in TRAIN}
        test = results.get("test") or {}
        found["accuracy"] = _value(test.get("accuracy"), test.get("std_err"))
    elif command == "nll":
        error, d = results.get("log_prob_standard_error"), results.get("dimensions")
        found["bits_per_dim"] = _value(results.get("bits_per_dim"), results.get("bits_per_dim_standard_error"))
        found["nats_per_dim"] = _value(results.get("nats_per_dim"), error / d if error and d else None)
        elbo = results.get("elbo") or {}
        found["elbo_bits_per_dim"] = _value(elbo.get("bits_per_dim"), elbo.get("bits_per_dim_standard_error"))
        if found["bits_per_dim"]:
            del found["nats_per_dim"]
    elif command == "evaluate":
        found |= {k: _value(f.get("mean"), f.get("sd")) for k, f in (results.get("figures") or {}).items()}
    elif command == "sample":
        found["sampling_seconds"] = _value(results.get("sampling_seconds"))
    return {name: value for name, value in found.items() if value is not None}


def main_figure(record: dict) -> tuple[str, float] | None:
    """The figure that a run is judged by where nothing else is said; None where it has none."""
    found = figures(record)
    names = [*MAIN.get(record.get("command"), ()), *found]
    name = next((name for name in names if name in found and found[name].sound), None)
    return None if name is None else (name, found[name].value)


def _value(value, error=None) -> Value | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Value(float(value), float(error) if isinstance(error, int | float) else None)
