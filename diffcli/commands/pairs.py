"""A model that is given an image: its network, and the images that a command gives it, the user's own or the data's."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from torch import Tensor

from diffcli.commands.build import locate
from diffcli.commands.common import chosen, typed
from diffcli.commands.files import write_samples
from diffcli.commands.model import Model
from diffcli.commands.partial import Rows
from diffcli.data.base import Data
from diffcli.data.inputs import read_named
from diffcli.data.pair_picture import names_of, pair_grid
from diffcli.diffusion.denoiser import Denoiser
from diffcli.errors import UsageError
from diffcli.networks.concatenated import Concatenated
from diffcli.sampling import Conditions

SHOWN = 60  # samples in a grid of pairs


def widen(cfg, data: Data) -> None:
    """Give cfg a network of the channels of the items, their condition images and one more, see `Concatenated`.

    Raises UsageError for a network that takes none.
    """
    kind = locate(cfg.network["_target_"], "network")
    if "shape" not in cfg.network or (isinstance(kind, type) and issubclass(kind, Denoiser)):
        raise UsageError(
            f"condition=image: network={chosen('network')} takes no image", "network=unet|dit|mlp|diffusers_unet"
        )
    if len(data.shape) != 3 or tuple(data.image[1:]) != tuple(data.shape[1:]):
        raise UsageError(
            f"condition=image: images of shape {tuple(data.image)} do not lie on items of shape {tuple(data.shape)}",
            "both of the same height and width",
        )
    cfg.network.shape = [data.shape[0] + data.image[0] + 1, *data.shape[1:]]
    target = f"{Concatenated.__module__}.{Concatenated.__name__}"
    network = OmegaConf.to_container(cfg.network, resolve=True)
    cfg.network = {"_target_": target, "network": network, "image": list(data.image)}


@dataclass
class Pairs:
    """Condition images (N, C', H, W) in source units; what they are called, and the items they are of, where known."""

    inputs: Tensor
    names: list[str]
    targets: Tensor | None = None


def image_conditions(model: Model) -> Conditions:
    """The images that the samples are given: `each` samples of each in turn; with `input=` n is by default all of them."""
    config = model.config
    found, each = pairs(model), config.get("each") or 1
    if config.get("input") is not None and not typed("n="):
        config["n"] = len(found.inputs) * each
    return Conditions(each, image=model.data.transform.encode(found.inputs))


def pairs(model: Model) -> Pairs:
    """The user's own images where `input=` names them, else those of the first items of the split (of test).

    Raises UsageError for files that are not there or do not fit, and for data without images.
    """
    config = model.config
    if config.get("input") is not None:
        return Pairs(*read_named(config["input"], image_shape(model), model.data.transform.levels))
    check_images(model, "input=FILE.png or a folder, or ")
    items = model.data.split(config.get("split") or "test")
    count = min(len(items), math.ceil(config["n"] * config.get("repeats", 1) / (config.get("each") or 1)))
    names = getattr(items, "names", None) or [f"{i:06d}" for i in range(count)]
    return Pairs(items.given(range(count), "image"), list(names[:count]), items.__getitems__(range(count))[0])


def check_images(model: Model, instead: str = "") -> None:
    """Raise UsageError where the data have no images as the model is given."""
    wanted, there = image_shape(model), model.data.image
    if there is None or tuple(there) != wanted:
        has = "none" if there is None else f"those of shape {tuple(there)}"
        raise UsageError(
            f"{model.source} is given an image of shape {wanted}, and these data have {has}",
            f"{instead}data=image_pairs data.root= of its pairs",
        )


def image_shape(model: Model) -> tuple[int, ...]:
    """The shape (C', H, W) of the image that the model's network is given."""
    return next(part.image for part in model.denoiser.modules() if isinstance(part, Concatenated))


def write_pairs(path: Path, x: np.ndarray | Rows, model: Model, png: bool) -> list[Path]:
    """samples.npy, grid.png of inputs with their samples (and targets), and a picture of each sample named after its input."""
    found, each, levels = pairs(model), model.config.get("each") or 1, model.data.transform.levels
    names = names_of([found.names[i // each % len(found.names)] for i in range(len(x))])
    files = write_samples(path, x, model, png, names)
    shown = x[: SHOWN - SHOWN % each or each]
    rows = [i % len(found.inputs) for i in range(-(-len(shown) // each))]
    targets = None if found.targets is None else found.targets[rows]
    pair_grid(found.inputs[rows], shown, targets, path / "grid.png", levels, each)
    return [path / "grid.png", *files]
