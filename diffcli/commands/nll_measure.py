"""The measuring of `diffcli nll`: batch after batch, each item once, in file order."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffcli.commands.common import several
from diffcli.commands.model import Model
from diffcli.commands.nll_given import Told
from diffcli.data.base import Items
from diffcli.data.transform import Transform
from diffcli.diffusion.bound import VariationalBound
from diffcli.diffusion.endings import naming
from diffcli.diffusion.likelihood import LogDensity, LogLikelihood
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise
from diffcli.sampling import batches, padded
from diffcli.sharing import share


class Measured(NamedTuple):
    """One batch: a column (B,) for each figure, the strata of the bound (B, J), and what was found once for all items."""

    first: int
    columns: dict[str, np.ndarray]
    parts: np.ndarray | None
    findings: dict[str, float] = {}


def measure(
    model: Model,
    items: Items,
    n: int,
    likelihood: LogDensity,
    bound: VariationalBound | None,
    device: torch.device,
    tell: Told,
    done: int = 0,
) -> Iterator[Measured]:
    """The figures of items done ... n - 1 in nats and source units; done: whole batches that were measured before.

    log p(x) = log p(y) + log |dy/dx| for the model-space value y of a (dequantised) item x; `elbo` is a bound of
    -log p(x), or of the -log of a level's probability where the bound knows levels; each given what `tell` says of the item.
    With devices=N as many processes share the batches, and the figures are the same.
    Raises NumericalError for an item or a log-density that is not finite.
    """
    size = model.config["batch_size"]
    measuring = Measuring(model, items, n, padded(n, size), likelihood, bound, tell, device)
    jobs = [batch.start for batch in batches(n - done, size, done, n)]
    devices = several(model.config.get("devices"), device)[: len(jobs)]
    with tqdm(total=n, initial=done, desc="likelihood", unit="item", disable=None, leave=False) as bar:
        found = map(measuring, jobs) if len(devices) < 2 else share(measuring, jobs, devices)
        with contextlib.closing(found) if len(devices) > 1 else contextlib.nullcontext():
            for batch in found:
                yield batch
                bar.update(len(batch.columns["log_prob"]))


@dataclasses.dataclass
class Measuring:
    """Measures the batch of `size` items, of n, that begins at item `first`."""

    model: Model
    items: Items | None
    n: int
    size: int
    likelihood: LogDensity
    bound: VariationalBound | None
    tell: Told
    device: torch.device

    def __getstate__(self) -> dict:
        """Without the items, which another process reads itself."""
        data = copy.copy(self.model.data)
        data._splits = {}
        return self.__dict__ | {"items": None, "model": dataclasses.replace(self.model, data=data)}

    def to(self, device: torch.device) -> None:
        self.device = device
        self.model.denoiser.to(device)
        self.items = self.model.data.split(self.model.config["split"])

    def __call__(self, first: int) -> Measured:
        model, config, transform = self.model, self.model.config, self.model.data.transform
        dtype = getattr(torch, config["dtype"])
        offset = math.prod(model.shape) * transform.log_jacobian
        batch, keep = range(first, first + self.size), min(self.size, self.n - first)
        indices = [min(i, self.n - 1) for i in batch]
        x, y = self.items.__getitems__(indices)
        cond = self.tell(self.items, indices, y, dtype, self.device)
        _check_finite(x.flatten(1).isfinite().all(1), first, "item {} of the data is not finite")
        noise = ItemNoise(config["seed"], batch, model.shape, torch.float64)
        places = [y.to(dtype).to(self.device) for y in dequantised(transform, x, noise, config)]
        with naming(indices):
            found = [self.likelihood(model.denoiser, place, noise, **cond) for place in places]
        columns = {"log_prob": None} | combined(found, offset)
        _check_finite(columns["log_prob"].isfinite(), first, "the log-likelihood of item {} is not finite", keep)
        parts = None
        if self.bound is not None:
            estimate = self.bound(model.denoiser, places[0], noise, **cond)
            shift = 0.0 if self.bound.levels else offset
            columns |= {
                "elbo": estimate.value - shift,
                "elbo_std_err": estimate.std_err,
                "elbo_prior": estimate.prior,
                "elbo_steps": estimate.steps,
                "elbo_reconstruction": estimate.reconstruction - shift,
                "elbo_nfe": estimate.nfe,
            }
            _check_finite(columns["elbo"].isfinite(), first, "the bound of item {} is not finite", keep)
            parts = estimate.parts[:keep].cpu().numpy()
        columns = {name: value[:keep].cpu().numpy() for name, value in columns.items()}
        return Measured(first, columns, parts, self.likelihood.findings())


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
