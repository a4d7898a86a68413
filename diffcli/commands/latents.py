"""What encode, decode and interpolate have in common: a model, an ODE sampler walked either way, items batch by batch."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffcli.commands.conditions import as_unconditional, conditions
from diffcli.commands.guidance import guide, label_names
from diffcli.commands.model import Model, check_process, load_model, other_model
from diffcli.commands.source import refuse_source
from diffcli.commands.walk import Walk, plan_walk, within_floats
from diffcli.diffusion.encoding import Encoding
from diffcli.diffusion.endings import naming
from diffcli.diffusion.guidance import Conditioned
from diffcli.diffusion.samplers import Samples
from diffcli.errors import NumericalError, UsageError
from diffcli.randomness import ItemNoise
from diffcli.sampling import Conditions, batches

STEPS = 50  # unless told: fewer than for samples would show in the round trip


def prepare(cfg, device: torch.device, own: bool = False) -> Model:
    """The model with what the command tells it of each item; own: label=own waits for the items.

    Raises UsageError for a model that has no latents.
    """
    model = load_model(cfg, device)
    _check_latents(model)
    if own and wants_own_labels(model) and label_names(model):
        model.given = Conditions(label=torch.tensor([0]))  # until the items are read
    else:
        model.given = conditions(model)
    guide(model, device)
    return model


def wants_own_labels(model: Model) -> bool:
    """Whether label=own asks for each item's own."""
    return model.config["label"] == "own" and "own" not in label_names(model)


def prepare_other(path: str, model: Model, device: torch.device) -> Model:
    """A second model, by its checkpoint alone, told nothing of the items.  Raises as `prepare`."""
    other = other_model(path, model.config, model.config["weights"])
    other.denoiser.to(device).to(getattr(torch, model.config["dtype"])).eval().requires_grad_(False)
    _check_latents(other)
    as_unconditional(other)
    return other


def _check_latents(model: Model) -> None:
    check_process(model)
    if model.condition == "image":
        raise UsageError(
            f"{model.source} is told an image of each item (condition=image), and encoding tells it none",
            "diffcli sample input=FILE.png, or a model without condition=image",
        )
    refuse_source(model, "it has no latents", "diffcli sample input=FILE.png, or a model without source=")


def plan(model: Model, last: str | None = "stop") -> Walk:
    """The sampler on its grid, 50 steps unless told.  Raises UsageError."""
    return plan_walk(model.config | {"n": 1, "last": last}, model, usual=STEPS)


def plan_encoding(model: Model, last: str | None = "stop", instead: str = "") -> Encoding:
    """The same as a way that can be walked back; instead: what else would take another sampler.  Raises UsageError."""
    walk = plan(model, last)
    try:
        encoding = Encoding(walk.sampler, walk.times, model.config.get("noised", False), walk.last)
    except ValueError as error:
        what, _, fits = str(error).partition(": ")
        raise UsageError(what, fits + instead) from error
    try:
        encoding.setup(model.denoiser)
    except ValueError as error:
        raise UsageError(f"noised=true: {error}", "noised=false") from error
    return encoding


Step = Callable[..., Samples]


def by_batch(
    step: Step, n: int, model: Model, device: torch.device, walk: Encoding | Walk, desc: str, of=lambda i: i
) -> tuple[Tensor, Tensor]:
    """`step(rows, denoiser, noise, progress) -> Samples` of the items 0 ... n - 1, some at a time: x (n, *S), evaluations (n,).

    of: the item whose noise and conditions row i has, itself by default.  Raises NumericalError for what is not finite.
    """
    config, found = model.config, []
    dtype, size = getattr(torch, config["dtype"]), config["batch_size"]
    steps = None if walk.sampler.evaluations is None else len(walk.times) - 1
    parts = list(batches(n, size))
    with tqdm(total=steps and steps * len(parts), desc=desc, unit="step", disable=None, leave=False) as bar:

        def progress(steps):
            for i in steps:
                yield i
                bar.update()

        for items in parts:
            rows = [min(i, n - 1) for i in items]
            own = [of(i) for i in rows]
            noise = ItemNoise(config["seed"], own, model.shape, dtype, device)
            bound = model.denoiser
            if model.given is not None:
                bound = Conditioned(bound, **model.given(own, dtype, device))
            with within_floats(), naming(rows):
                x, nfe = step(rows, bound, noise, progress)
            keep = min(len(items), n - items.start)
            found.append((x[:keep].cpu(), nfe[:keep]))
    x, nfe = (torch.cat(part) for part in zip(*found, strict=True))
    bad = ~x.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise NumericalError(f"{desc}: item {int(bad.int().argmax())} is not finite ({int(bad.sum())} of {n} are not)")
    return x, nfe


def encode_all(encoding: Encoding, model: Model, x: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The latents (n, *S) of items x in source units, and the evaluations of each."""
    dtype = getattr(torch, model.config["dtype"])

    def step(rows, denoiser, noise, progress):
        x0 = model.data.transform.encode(x[rows].double()).to(device, dtype)
        return encoding.encode(denoiser, x0, noise, progress)

    return by_batch(step, len(x), model, device, encoding, "encoding")


def decode_all(
    encoding: Encoding, model: Model, z: Tensor, device: torch.device, of=lambda i: i
) -> tuple[np.ndarray, Tensor]:
    """The items (n, *S) in source units of latents z, and the evaluations of each; of: as in `by_batch`."""
    dtype = getattr(torch, model.config["dtype"])

    def step(rows, denoiser, noise, progress):
        return encoding.decode(denoiser, z[rows].to(device, dtype), progress)

    x, nfe = by_batch(step, len(z), model, device, encoding, "decoding", of)
    return model.data.transform.decode(x).numpy(), nfe


def errors(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> np.ndarray:
    """The r.m.s. difference of the values of each item, (n,), float64."""
    difference = (np.asarray(x, np.float64) - np.asarray(y, np.float64)).reshape(len(x), -1)
    return np.sqrt(np.square(difference).mean(1))
