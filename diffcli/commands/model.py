"""The model of sample, nll and evaluate: from a checkpoint with the user's changes, or the exact one without."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.advice import nearest
from diffcli.commands.build import build, locate
from diffcli.commands.common import chosen, plain, several, typed
from diffcli.commands.run_folder import say
from diffcli.commands.settings import check_settings
from diffcli.data.base import Data, Items
from diffcli.data.mixture import component_names
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.fitted import Fitted
from diffcli.diffusion.guidance import Rescaled
from diffcli.errors import UsageError
from diffcli.sampling import Conditions, Starts

GROUPS = {
    "schedule", "sde", "prediction", "network", "data", "source", "sampler", "grid", "likelihood", "denoiser", "features",
    "guidance", "task", "sweep",
}  # fmt: skip


@dataclass
class Model:
    """What a command works with; `config` is the resolved config with the model's own parts filled in."""

    denoiser: Denoiser
    data: Data
    shape: tuple[int, ...]
    source: str
    config: dict
    condition: str = "none"  # what the network may be told of an item: none, label, vector, image
    class_names: list[str] = field(default_factory=list)
    drop: float = 0.0  # how often it was told nothing while training
    vector: int = 0  # dimension of its condition vectors
    given: Conditions | None = None  # what this command tells it of each item
    guidance: str = ""  # what is asked in place of its score, as a formula
    problem: Any = None  # an inverse problem (commands.inverse.Problem) whose measurements are in `given`
    side: Data | None = None  # of a training with source=DATA, where samples start in the place of noise
    inputs: Items | None = None  # the user's own items of that side
    tuned: list[dict] = field(default_factory=list)  # what diffcli tune left in its checkpoint

    @property
    def always_told(self) -> str:
        """What to say of a model whose network was never told nothing, so that it knows no ∅."""
        return f"{self.source} was always told its {self.condition} (drop=0)"

    @property
    def starts(self) -> Starts | None:
        """x at t_max of each sample, of the inputs or of the side's test items; None for noise."""
        if self.side is None:
            return None
        items = self.side.split("test") if self.inputs is None else self.inputs
        return Starts(items, self.side.transform, self.denoiser.sde)


def load_model(cfg, device: torch.device, shares: bool = False) -> Model:
    """Build the denoiser and the data set that the settings of a command ask for; `shares` where it uses several devices.

    Raises UsageError for settings that do not fit, CheckpointError for a checkpoint that cannot be used.
    """
    if typed("prediction="):  # before its interpolations are resolved, which need a whole model
        raise UsageError("prediction= is part of the trained model and cannot be changed", "diffcli train prediction=…")
    if "prediction" in cfg:  # which an SDE prefers: the model has its own
        cfg.prediction = None
    check_settings(plain(cfg), GROUPS)
    if shares:
        several(cfg.devices, device)
    elif cfg.devices not in (None, 1):
        raise UsageError(f"devices={cfg.devices}: this command uses one device", "devices=1")
    model = _exact(cfg) if typed("network=") else _from_checkpoint(cfg)
    model.denoiser.to(device).to(getattr(torch, cfg.dtype)).eval().requires_grad_(False)
    return model


def _exact(cfg) -> Model:
    config = plain(cfg)
    if config["ckpt"] is not None:
        raise UsageError("network= cannot be changed where ckpt= gives the model", "leave one of the two out")
    if config["denoiser"] is None:
        raise UsageError(
            "without a checkpoint there are no trained weights for this network", "network=exact, or ckpt=PATH"
        )
    kind = locate(config["denoiser"]["_target_"], "network")
    if isinstance(kind, type) and issubclass(kind, Fitted):  # before it is built, which takes what only the data know
        raise UsageError(
            f"network={chosen('network')} is fitted to data first", f"diffcli train network={chosen('network')}"
        )
    data = build(config["data"], "data")
    denoiser = build(config["denoiser"], "network")
    shape = tuple(denoiser.mixture.means.shape[1:])
    if config["network"]["file"] is not None and not typed("data"):
        data = build({"_target_": "diffcli.data.mixture.Mixture", "file": config["network"]["file"]}, "data")
    names = component_names(len(denoiser.mixture.weights))
    source = "the exact score of the mixture"
    return Model(denoiser, data, shape, source, config, "label", names, drop=1.0)  # it knows both scores


def _from_checkpoint(cfg) -> Model:
    path = Path(cfg.ckpt).expanduser() if cfg.ckpt is not None else checkpoint.newest()
    if cfg.ckpt is None:
        say(f"model: {path} (the newest training run)")
    content = checkpoint.read(path)
    config = plain(cfg)
    node, data_node = content["config"]["denoiser"], checkpoint.own_data(content["config"])
    if typed("sde.") and not typed("sde="):
        checkpoint.check_node(node, (nn.Module,), cfg.trust, "denoiser")
        _change(node.get("sde"), config["sde"], "sde", allowed={"t_min"})
        build(node["sde"], "sde")  # a value that does not fit is the user's error, not the checkpoint's
    if typed("data="):
        data_node = config["data"]
    elif config.get("data"):
        _change(data_node, config["data"], "data")
    if not typed("data="):
        checkpoint.check_node(data_node, (Data,), cfg.trust, "data")
    side = _side(checkpoint.own_data(content["config"], "source"), config, cfg.trust)
    denoiser = checkpoint.build_denoiser(node, cfg.trust, content["state_dict"])
    checkpoint.load_weights(denoiser, content, cfg.weights, path)
    if typed("sde=") or typed("schedule="):
        if not denoiser.sde.is_process:
            raise UsageError(
                f"{path} is a model of one noise level (levels=one): it fits no other SDE",
                "sde= and schedule= left out",
            )
        sde = config["sde"] if typed("sde=") else node["sde"] | {"schedule": config["schedule"]}
        denoiser = _rescaled(denoiser, sde)
    config |= {"ckpt": str(path), "denoiser": node, "data": data_node, "sde": config.get("sde") or node.get("sde")}
    trained = content["config"]
    model = Model(denoiser, build(data_node, "data"), tuple(content["shape"]), str(path), config, side=side)
    model.tuned = content.get("tuned", [])
    model.condition, model.class_names, model.drop, model.vector = checkpoint.conditioning(trained, path)
    return model


def other_model(path: str, config: dict, weights: str) -> Model:
    """A second model beside that of `config`, as it was trained.  Raises UsageError, CheckpointError as `load_model`."""
    content = checkpoint.read(path)
    trained, trust = content["config"], config["trust"]
    denoiser = checkpoint.build_denoiser(trained["denoiser"], trust, content["state_dict"])
    checkpoint.load_weights(denoiser, content, weights, Path(path))
    node = checkpoint.own_data(trained)
    checkpoint.check_node(node, (Data,), trust, "data")
    side, data = _side(checkpoint.own_data(trained, "source"), {}, trust), build(node, "data")
    model = Model(denoiser, data, tuple(content["shape"]), path, config | {"ckpt": path}, side=side)
    model.condition, model.class_names, model.drop, model.vector = checkpoint.conditioning(trained, Path(path))
    return model


def _side(node: dict | None, config: dict, trust: str | None) -> Data | None:
    """The data set that samples start from, with the user's changes, which become part of `config`."""
    changes = config.pop("source", None)
    if node is None and changes:
        raise UsageError("source.* is of a model between two data sets, and this one starts from noise")
    if node is None:
        return None
    checkpoint.check_node(node, (Data,), trust, "source")
    _change(node, changes or {}, "source")
    config["source"] = node
    return build(node, "source")


def _rescaled(denoiser: Denoiser, node: dict) -> Denoiser:
    try:
        return Rescaled(build(node, "sde"), denoiser)
    except ValueError as error:
        raise UsageError(f"sde: {error}") from error


def _change(node: dict | None, changes: dict, group: str, allowed: set[str] | None = None) -> None:
    """Set the keys that the user typed in a node of the checkpoint; a key that it does not have is refused."""
    known = {k for k in node or () if k != "_target_"} & (allowed or set(node or ()))
    for key, value in changes.items():
        if key in (node or ()) and key not in known:
            free = "|".join(f"{group}.{k}" for k in sorted(known))
            raise UsageError(
                f"{group}.{key} is part of the trained model and cannot be changed", f"{free}=VALUE" if free else ""
            )
        if key not in known:
            raise UsageError(f"the checkpoint's {group} has no setting {key!r} to change{nearest(key, known)}")
        node[key] = value


def check_process(model: Model, instead: str = "") -> None:
    """Raise UsageError for a model of one noise level, which has a score and no way from noise to data."""
    if not model.denoiser.sde.is_process:
        raise UsageError(
            f"{model.source} is a model of one noise level (levels=one): it has no process to walk along",
            f"{instead}a training on all levels: diffcli train sde=vp|subvp|ve|flow",
        )


def check_shape(model: Model, shape, what: str) -> None:
    """Raise UsageError unless items of this shape fit the model."""
    if tuple(shape) != model.shape:
        raise UsageError(f"{what} has items of shape {tuple(shape)}, the model takes {model.shape}")


def read_states(path: Path, model: Model, key: str) -> Tensor:
    """Latents, or x at t_max, (n, *S) float64 of the model's shape from a .npy.  Raises UsageError for what is none."""
    try:
        z = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"{key}={path}: there is no such file") from None
    except (OSError, ValueError, EOFError):
        raise UsageError(f"{key}={path} is no .npy file of numbers") from None
    if not isinstance(z, np.ndarray) or z.dtype.kind not in "fiu" or z.ndim < 2 or len(z) == 0:
        raise UsageError(f"{key}={path} must hold numbers of shape (n, {', '.join(map(str, model.shape))})")
    check_shape(model, z.shape[1:], f"{key}={path}")
    if not np.isfinite(z).all():
        raise UsageError(f"{key}={path} holds values that are not finite")
    return torch.from_numpy(z.astype(np.float64))


def parameters(denoiser: nn.Module) -> int:
    """How many weights a model has."""
    return sum(p.numel() for p in denoiser.parameters())
