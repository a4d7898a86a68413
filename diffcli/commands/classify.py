"""What `diffcli train task=classifier` needs before it starts, in the place of a denoiser, its loss and its previews."""

from dataclasses import dataclass
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf

from diffcli.commands.build import build, check, check_type
from diffcli.commands.common import typed
from diffcli.data.base import Data
from diffcli.diffusion.classifier import Classifier, CrossEntropy
from diffcli.errors import UsageError
from diffcli.randomness import key

# groups and settings of a score, which are not of a classifier
UNUSED = (
    "source",
    "source_noise",
    "denoiser",
    "loss",
    "prediction",
    "network",
    "coupling",
    "sampler",
    "grid",
    "preview",
    "levels",
    "level",
    "ckpt",
    "condition",
    "drop",
    "class_names",
)
PATH = ("sde", "schedule")
INSTEAD = {
    "network": "task.network.channels=, task.network.width=, …",
    "loss": "task.time= chooses the levels; the loss is the cross-entropy",
    "levels": "task.noise=true trains on all levels of sde=, task.noise=false on clean items",
}


@dataclass
class ClassifierParts:
    """What the config of a classifier builds, all of it checked, before anything is written."""

    config: dict
    data: Data
    classifier: Classifier
    loss: CrossEntropy
    optim: object

    @property
    def model(self) -> Classifier:
        """What is trained."""
        return self.classifier


def is_classifier(cfg: DictConfig | dict) -> bool:
    """Whether this config of train is one of a classifier: its task has a network of its own."""
    return "network" in (cfg.get("task") or {}) or "classifier" in cfg


def check_task(cfg: DictConfig) -> None:
    """Refuse what was typed for a score, and a process that a classifier of clean items would not use.  Raises UsageError.

    Puts true or false in the place of task.noise=auto.
    """
    for name in UNUSED:
        if typed(f"{name}=") or typed(f"{name}."):
            raise UsageError(
                f"{name}= is of a score, and task=classifier does not use it", INSTEAD.get(name, f"leave {name} out")
            )
    if not isinstance(cfg.task.network, DictConfig):
        raise UsageError(f"task.network={cfg.task.network}: it is no group", INSTEAD["network"])
    if typed("sde=one"):
        raise UsageError(
            "sde=one is a single noise level, a classifier is trained at all of them", "sde=vp|subvp|ve|flow"
        )
    check_type(cfg.task.noise, bool | Literal["auto"], "task.noise")
    asked = [name for name in PATH if typed(f"{name}=") or typed(f"{name}.")]
    if asked and cfg.task.noise is False:
        raise UsageError(f"task.noise=false is a classifier of clean items, which has no {asked[0]}", "task.noise=true")
    if cfg.task.noise == "auto":
        cfg.task.noise = bool(asked)
    of_levels = [k for k in ("time", "T", "p_mean", "p_std") if typed(f"task.{k}=")]
    if of_levels and not cfg.task.noise:
        raise UsageError(f"task.{of_levels[0]}= is of the noise levels, and these items are clean", "task.noise=true")


def check_labels(data: Data) -> None:
    """Raise UsageError where the data have no labels, or one alone."""
    if data.classes < 2:
        what = "no labels" if data.classes == 0 else "a single class"
        raise UsageError(
            f"these data have {what}: there is nothing to classify",
            "data=mnist|fashion_mnist|cifar10|digits|mixture|moons|circles, or an image_folder of one sub-folder a class",
        )


def drop_unused(cfg: DictConfig) -> None:
    """Take out of cfg what is of a score alone, and the process that clean items do not have."""
    for name in (*UNUSED, *(() if cfg.task.noise else PATH)):
        if name in cfg:
            del cfg[name]
    if not cfg.task.noise and not typed("dequantize="):
        cfg.dequantize = "none"  # it is asked about level centres


def fill_in(cfg: DictConfig, data: Data) -> None:
    """Give cfg the node `classifier`, made of the task's network, the data's shape and labels, and the SDE."""
    network, shape = cfg.task.network, list(data.shape)
    for name, value in (("shape", shape), ("classes", data.classes)):
        if name in network:
            if network[name] not in (None, value):
                raise UsageError(f"task.network.{name}={network[name]} is not the data's, {value}", "leave it out")
            network[name] = value
    cfg.classifier = {
        "_target_": "diffcli.diffusion.classifier.Classifier",
        "network": OmegaConf.to_container(network, resolve=True),
        "shape": shape,
        "class_names": list(data.class_names),
        "sde": OmegaConf.to_container(cfg.sde, resolve=True) if cfg.task.noise else None,
    }
    del cfg.task.network


def build_classifier(config: dict) -> ClassifierParts:
    """Build every part of a plain config.  Raises UsageError for the first that does not fit."""
    data, optim = build(config["data"], "data"), build(config["optim"], "optim")
    times = {name: value for name, value in config["task"].items() if name not in ("noise", "network")}
    loss = build({"_target_": "diffcli.diffusion.classifier.CrossEntropy"} | times, "task")
    check(config["trainer"], "trainer")
    torch.manual_seed(key(config["seed"], "init") % 2**63)
    classifier = build(config["classifier"], "classifier")
    try:
        loss.setup(classifier)
    except ValueError as error:
        raise UsageError(f"task: {error}") from error
    return ClassifierParts(config, data, classifier, loss, optim)
