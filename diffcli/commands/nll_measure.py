"""The measuring of `diffcli nll`: batch after batch, each item once, in file order."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffcli.commands.model import Model
from diffcli.commands.nll_given import Told
from diffcli.data.transform import Transform
from diffcli.diffusion.bound import VariationalBound
from diffcli.diffusion.likelihood import LogDensity, LogLikelihood
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise
from diffcli.sampling import batches


class Measured(NamedTuple):
    """One batch: its items in source units, a column (B,) for each figure, and the strata of the bound (B, J)."""

    first: int
    x: Tensor
    columns: dict[str, np.ndarray]
    parts: np.ndarray | None


def measure(
    model: Model, items, n: int, likelihood: LogDensity, bound: VariationalBound | None, device, tell: Told
) -> Iterator[Measured]:
    """The figures of items 0 ... n - 1 in nats and source units.

    log p(x) = log p(y) + log |dy/dx| for the model-space value y of a (dequantised) item x; `elbo` is a bound of
    -log p(x), or of the -log of a level's probability where the bound knows levels; each given what `tell` says of the item.
    Raises NumericalError for an item or a log-density that is not finite.
    """
    config, transform = model.config, model.data.transform
    dtype = getattr(torch, config["dtype"])
    offset = math.prod(model.shape) * transform.log_jacobian
    with tqdm(total=n, desc="likelihood", unit="item", disable=None, leave=False) as bar:
        for batch in batches(n, config["batch_size"]):
            keep = min(len(batch), n - batch.start)
            indices = [min(i, n - 1) for i in batch]
            x, y = items.__getitems__(indices)
            cond = tell(indices, y, dtype, device)
            _check_finite(x.flatten(1).isfinite().all(1), batch.start, "item {} of the data is not finite")
            noise = ItemNoise(config["seed"], batch, model.shape, torch.float64)
            places = [y.to(dtype).to(device) for y in dequantised(transform, x, noise, config)]
            found = [likelihood(model.denoiser, place, noise, **cond) for place in places]
            columns = {"log_prob": None} | combined(found, offset)
            _check_finite(
                columns["log_prob"].isfinite(), batch.start, "the log-likelihood of item {} is not finite", keep
            )
            parts = None
            if bound is not None:
                estimate = bound(model.denoiser, places[0], noise, **cond)
                shift = 0.0 if bound.levels else offset
                columns |= {
                    "elbo": estimate.value - shift,
                    "elbo_std_err": estimate.std_err,
                    "elbo_prior": estimate.prior,
                    "elbo_steps": estimate.steps,
                    "elbo_reconstruction": estimate.reconstruction - shift,
                    "elbo_nfe": estimate.nfe,
                }
                _check_finite(columns["elbo"].isfinite(), batch.start, "the bound of item {} is not finite", keep)
                parts = estimate.parts[:keep].cpu().numpy()
            columns = {name: value[:keep].cpu().numpy() for name, value in columns.items()}
            yield Measured(batch.start, x[:keep], columns, parts)
            bar.update(keep)


def dequantised(transform: Transform, x: Tensor, noise: ItemNoise, config: dict) -> list[Tensor]:
    """Where items lie in model space, float64: at their level's centre, at one place within it, or at several."""
    x = x.double()
    if not transform.levels or config["dequantize"] == "none":
        return [transform.encode(x)]
    more = config["dequantize_samples"] if config["dequantize"] == "importance" else 1
    # the first place is that of dequantize=uniform
    names = ["dequantize", *(f"dequantize {k}" for k in range(1, more))]
    return [transform.encode(x, noise.uniform(name)) for name in names]


def combined(found: list[LogLikelihood], offset: float) -> dict[str, Tensor]:
    """Columns of one figure an item (B,), from the K places of each: `log (1/K) sum_k p(x + u_k)`.

    In the mean over u it rises with K from the uniform bound to the log-probability of the level.  All places of an item
    share its probes, so that their divergence errors move together: weighted by `w_k = p_k / sum p` they are added as they
    are, not in squares.  Burda et al. 2016, arXiv:1509.00519; Ho et al. 2019, arXiv:1902.00275.
    """
    log_p = torch.stack([f.log_prob for f in found]) + offset
    w = torch.softmax(log_p, 0)

    def weighted(name: str) -> Tensor:
        return (w * torch.stack([torch.as_tensor(getattr(f, name)).to(w).expand_as(w[0]) for f in found])).sum(0)

    columns = {
        "log_prob": torch.logsumexp(log_p, 0) - math.log(len(found)),
        **{name: weighted(name) for name in ("std_err", "solver_err", "truncation", "path_gap")},
        "nfe": torch.stack([f.nfe for f in found]).sum(0),
    }
    return columns | ({"effective_samples": 1 / w.square().sum(0)} if len(found) > 1 else {})


def _check_finite(fine: Tensor, first: int, sentence: str, keep: int | None = None) -> None:
    fine = fine[:keep].cpu()
    if not bool(fine.all()):
        raise NumericalError(sentence.format(first + int(fine.int().argmin())))
