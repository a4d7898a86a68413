"""What `diffcli tune` left in a file: grids and weights of steps, before anything walks by them."""

import torch
from torch import Tensor

from diffcli.errors import CheckpointError
from diffcli.untrusted.config import check_plain

MOST = 10_000  # steps of one, and how many a file may hold
TENSORS = ("times", "weights", "alpha", "sigma")
KEYS = {"name": str, "asked": str, "sampler": dict, "grid": dict, "fit": dict, "steps": int, "nfe": int}
KEYS |= {"times": Tensor, "weights": Tensor | None, "alpha": Tensor, "sigma": Tensor, "before": float, "after": float}


def check_tuned(found, path) -> list[dict]:
    """Let through a list of what was tuned, each with KEYS; `{times, alpha, sigma}` (steps + 1,), `weights` (steps, steps + 1).

    Times fall strictly within [0, 1].  Tensors are float64, and finite by `check_content`.
    Raises CheckpointError with one sentence.
    """
    if not isinstance(found, list) or len(found) > MOST:
        raise CheckpointError(f"{path} is refused: its tuned is no list of what was tuned")
    for i, entry in enumerate(found):
        wrong = _wrong(entry)
        if wrong:
            raise CheckpointError(f"{path} is refused: tuned.{i} {wrong}")
        for key in ("sampler", "grid", "fit"):
            check_plain(entry[key], f"tuned.{i}.{key}")
    return found


def _wrong(entry) -> str:
    """What is wrong with one of them; empty where nothing is."""
    if not isinstance(entry, dict) or entry.keys() != KEYS.keys():
        return "has other keys than what was tuned"
    odd = next((key for key, kind in KEYS.items() if not isinstance(entry[key], kind)), None)
    steps, times, weights = entry["steps"], entry["times"], entry["weights"]
    if odd is not None or isinstance(steps, bool) or not 1 <= steps <= MOST:
        return f"has no {odd or 'steps'} of its kind"
    shapes = {"times": (steps + 1,), "alpha": (steps + 1,), "sigma": (steps + 1,)}
    shapes |= {} if weights is None else {"weights": (steps, steps + 1)}
    for key, shape in shapes.items():
        if entry[key].shape != shape or entry[key].dtype != torch.float64:
            return f"has {key} of another shape or type than its {steps} steps"
    if not bool((times.diff() < 0).all()) or times[0] > 1 or times[-1] < 0:
        return "has times that do not fall from 1 to 0"
    return "" if entry["asked"].isprintable() and entry["name"].isprintable() else "has text that is none"
