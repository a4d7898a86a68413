"""What `condition=` asks of the data and of the network, before a training starts."""

import inspect

from diffcli.commands.common import chosen
from diffcli.commands.pairs import widen
from diffcli.data.base import Data
from diffcli.diffusion.denoiser import Denoiser
from diffcli.errors import UsageError
from diffcli.training.condition import check_condition

TOLD = {"label": "classes", "vector": "vector"}  # condition -> the network's key for how much of it there is
DROP = 0.1  # Ho & Salimans 2022, table 1, arXiv:2207.12598


def prepare_condition(cfg, data: Data) -> None:
    """Tell the network how many labels there are, or how long the vectors, and cfg their names.

    Raises UsageError for what the data or the network lack.
    """
    name = cfg.condition
    for condition, size in TOLD.items():
        if cfg.network.get(size) and condition != name:
            raise UsageError(
                f"network.{size}={cfg.network[size]}: training gives the network no {condition}",
                f"condition={condition}",
            )
    if name == "none":
        if cfg.drop is not None:
            raise UsageError(f"drop={cfg.drop}: there is no condition to drop", "condition=label")
        return
    check_condition(name, data)
    if name == "label":
        cfg.class_names = list(data.class_names)
    if cfg.drop is not None and cfg.drop >= 1:
        raise UsageError(f"drop={cfg.drop} would tell the network nothing at all", "0 <= drop < 1, or condition=none")
    if name == "image":
        cfg.drop = cfg.drop or 0.0
        return widen(cfg, data)
    size, value = TOLD[name], data.classes if name == "label" else data.vector
    if size not in cfg.network:
        raise UsageError(
            f"condition={name}: network={chosen('network')} takes none",
            f"network=unet|dit|mlp|diffusers_unet, or the argument {size} in a network of your own and its yaml",
        )
    if cfg.network[size] not in (0, None, value):
        raise UsageError(f"network.{size}={cfg.network[size]} is not the data's, {value}", "leave it out")
    cfg.network[size] = value
    _fill_drop(cfg, value)


def _fill_drop(cfg, value: int) -> None:
    """The default, and none where a network with an embedding of its own (diffusers) has no place for no label."""
    own = (cfg.network.get("config") or {}).get("num_class_embeds")
    if own == value and cfg.condition == "label":
        if cfg.drop:
            raise UsageError(
                f"drop={cfg.drop}: network.config.num_class_embeds={own} has no place for no label",
                f"drop=0, or network.config.num_class_embeds={own + 1}",
            )
        cfg.drop = 0.0
    cfg.drop = DROP if cfg.drop is None else cfg.drop


def check_forward(denoiser: Denoiser, condition: str) -> None:
    """Raise UsageError where the network, the user's own perhaps, has no argument for what it would be told."""
    network = getattr(denoiser, "network", None)
    if condition not in TOLD or network is None:
        return
    taken = inspect.signature(network.forward).parameters
    if condition not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        raise UsageError(
            f"condition={condition}: {type(network).__name__}.forward has no argument {condition}",
            f"forward(self, x, c_noise, {condition}=None)",
        )
