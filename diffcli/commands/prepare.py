"""What a training needs before it starts: a config made whole, and parts that are known to go together."""

import math
import os
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from diffcli.commands.build import build, check
from diffcli.commands.classify import (
    ClassifierParts,
    build_classifier,
    check_labels,
    check_task,
    drop_unused,
    fill_in,
    is_classifier,
)
from diffcli.commands.common import check_walk, chosen, pick_device, typed
from diffcli.commands.fit import check_fit
from diffcli.commands.job import searches
from diffcli.commands.run_folder import say
from diffcli.commands.settings import check_settings
from diffcli.commands.source import prepare_source, side_of, source_of
from diffcli.commands.training_condition import check_forward, prepare_condition
from diffcli.commands.walk import build_sampler
from diffcli.data.base import Data
from diffcli.data.measure import MEASURES, measured
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.fitted import Fitted
from diffcli.diffusion.loss import Loss, TrainingSet
from diffcli.errors import UsageError
from diffcli.randomness import key
from diffcli.training.augment import Augment
from diffcli.training.condition import Condition

GROUPS = {
    "schedule", "sde", "levels", "prediction", "network", "data", "source", "loss", "coupling", "optim", "trainer", "logger",
    "sampler", "grid", "denoiser", "sweep", "experiment", "task",
}  # fmt: skip

LARGE = 4  # GiB of float64: what reads more at once says so


@dataclass
class Parts:
    """What a config builds, all of it checked, before anything is written."""

    config: dict
    data: Data
    denoiser: Denoiser
    loss: Loss
    optim: object
    sampler: object
    grid: object
    condition: Condition | None = None
    side: Data | None = None  # where it starts in the place of noise

    @property
    def model(self) -> Denoiser:
        """What is trained."""
        return self.denoiser


def prepare(cfg) -> None:
    """Fill in what depends on other parts: the data's shape in the network, and device names in the trainer."""
    check_settings(OmegaConf.to_container(cfg, resolve=False), GROUPS)
    with open_dict(cfg):
        if cfg.devices is not None:
            cfg.trainer.devices = cfg.devices
        if cfg.device is not None:
            cfg.trainer.accelerator = {"cuda": "gpu"}.get(cfg.device, cfg.device)
    if cfg.trainer.accelerator == "gpu":
        pick_device("cuda")
    if cfg.cuda_graphs and (not cfg.compile or cfg.trainer.accelerator not in ("gpu", "cuda")):
        raise UsageError("cuda_graphs=true is of compiled code on a GPU", "trainer=gpu compile=true, or leave it out")
    _check_devices(cfg.trainer)
    _check_search(cfg.trainer)
    if is_classifier(cfg):
        check_task(cfg)
    if typed("network=exact"):
        raise UsageError(
            "network=exact is known already and is not trained", "diffcli sample network=exact data=mixture"
        )
    data = build(OmegaConf.to_container(cfg.data, resolve=True), "data")
    for split in ("train", "val"):
        data.split(split)  # a missing file is found before anything is made
    Augment(data, **cfg.augment)  # refuses what these items cannot be given
    for note in data.notes:
        say(f"note: {note}")
    if is_classifier(cfg):
        return _prepare_classifier(cfg, data)
    check_clock(cfg)
    prepare_source(cfg, data)
    measure(cfg, data)
    _match_outputs(cfg)
    if "shape" in cfg.network:
        shape = list(data.shape)
        if cfg.network.shape is not None and list(cfg.network.shape) != shape:
            raise UsageError(f"network.shape={list(cfg.network.shape)} is not the data's, {shape}", "leave it out")
        cfg.network.shape = shape
    with open_dict(cfg):
        prepare_condition(cfg, data)
    if "n" in cfg.network:
        n = len(data.split("train"))
        if cfg.network.n not in (None, n):
            raise UsageError(f"network.n={cfg.network.n} is not the number of training items, {n}", "leave it out")
        cfg.network.n = n


def _prepare_classifier(cfg, data: Data) -> None:
    check_labels(data)
    if cfg.task.noise:
        check_clock(cfg)
    with open_dict(cfg):
        drop_unused(cfg)
        measure(cfg, data)
        fill_in(cfg, data)


def check_clock(cfg) -> None:
    """Refuse a schedule for a process that has its own clock, and a process for a model of one level."""
    name = chosen("sde")
    if "alpha" in cfg.get("level", {}) and name != "one":
        raise UsageError(
            f"levels=one is a model of one noise level, without sde={name}", "levels=one alone, or sde= alone"
        )
    if "level" not in cfg and name == "one":
        raise UsageError("sde=one has no noise level", "levels=one level.sigma=0.1")
    if "schedule" not in cfg.sde and cfg.schedule:
        raise UsageError(
            f"sde={name} has a clock of its own and takes no schedule", "leave schedule= out, or sde=vp|subvp|ve|flow"
        )
    if "schedule" in cfg.sde and not cfg.schedule:
        raise UsageError(f"sde={name} needs a schedule", "leave schedule=none out, or sde=ou|path|drift")


def measure(cfg, data: Data) -> None:
    """Put the measured number in the place of auto, so that the checkpoint holds it."""
    for group, node in cfg.items():
        if OmegaConf.is_interpolation(cfg, group):  # denoiser is prediction or network under another name
            continue
        for name in MEASURES.keys() & (node.keys() if isinstance(node, DictConfig) else ()):
            if OmegaConf.is_interpolation(node, name) or node[name] != "auto":
                continue
            if node.get("weight", "edm") != "edm":  # no other weight of a loss needs it: spare the reading of all items
                continue
            node[name] = measured(name, data.split("train"), data.transform.encode)
            say(f"{group}.{name} = {node[name]:.4g}, measured on the training items")


def _match_outputs(cfg) -> None:
    """Give the network as many outputs as the prediction reads, and no second one that nothing would train."""
    wanted, known = cfg.prediction.get("outputs", 1), "outputs" in cfg.network
    learned = cfg.loss.get("variance") == "learned"
    if wanted == 2 and not learned:
        raise UsageError(
            "prediction.outputs=2 adds a variance that this loss does not train", "loss=vlb loss.variance=learned"
        )
    if learned and wanted != 2:
        raise UsageError("loss.variance=learned needs a model with two outputs", "prediction.outputs=2")
    if wanted == 2 and not known:
        raise UsageError("prediction.outputs=2: this network has one output", "network=mlp|unet")
    if known and cfg.network.outputs == 1:
        cfg.network.outputs = wanted
    if known and cfg.network.outputs != wanted:
        raise UsageError(
            f"network.outputs={cfg.network.outputs} is not what the prediction reads, {wanted}", "leave it out"
        )


def _check_devices(trainer) -> None:
    """Refuse more processes on this machine than it has GPUs or cores: they would only wait for memory and each other."""
    gpus = torch.cuda.device_count() if trainer.accelerator in ("gpu", "cuda", "auto") else 0
    there, kind = (gpus, "GPUs") if gpus else (max(2, os.cpu_count() or 1), "CPU cores")
    wanted = trainer.get("devices")
    if str(wanted).isdigit() and int(wanted) > there:
        raise UsageError(f"trainer.devices={wanted}: this machine has {there} {kind}", f"trainer.devices={there}")


def _check_search(trainer) -> None:
    """Refuse a search by val_loss in which no training comes to a validation: it would be found out after all of them."""
    batches, interval = trainer.max_steps * trainer.accumulate_grad_batches, trainer.val_check_interval
    if searches() and (interval > batches or trainer.limit_val_batches == 0):
        raise UsageError(
            f"the search compares val_loss, and no validation falls within trainer.max_steps={trainer.max_steps}"
            f" (trainer.val_check_interval={interval})",
            f"trainer.val_check_interval={batches}",
        )


def build_parts(config: dict) -> Parts | ClassifierParts:
    """Build every part of a plain config.  Raises UsageError for the first that does not fit."""
    if is_classifier(config):
        return build_classifier(config)
    data, optim = (build(config[name], name) for name in ("data", "optim"))
    side = side_of(config)
    loss = build(config["loss"], "loss", **source_of(config, side))
    sampler, grid = build_sampler(config["sampler"]), build(config["grid"], "grid")
    check(config["trainer"], "trainer")
    torch.manual_seed(key(config["seed"], "init") % 2**63)
    try:
        denoiser = build(config["denoiser"], "prediction" if "network" in config["denoiser"] else "network")
    except UsageError as error:
        if "takes images" in error.message:
            raise UsageError(error.message, "network=mlp") from error
        if "no setting 'free'" in error.message:
            raise UsageError("this prediction is not free, and loss=cnf needs one", "prediction=velocity") from error
        raise
    if denoiser.sde.is_process:
        # the prior's warning is that of _warn, which knows the data
        check_walk(denoiser, sampler.kind if config["preview"]["every"] else "ode", "stop", warn=False)
    _fit_together(config, denoiser, loss, data)
    try:
        sampler.setup(denoiser)
    except ValueError as error:
        raise UsageError(f"sampler: {error}") from error
    if config["preview"]["every"] and denoiser.sde.is_process:
        try:
            grid(denoiser.sde, config["preview"]["steps"])
        except ValueError as error:
            raise UsageError(f"grid: {error}", "another preview.steps or grid, or preview.every=0") from error
    name = config["condition"]
    condition = None if name == "none" else Condition(name, config["drop"], data)
    return Parts(config, data, denoiser, loss, optim, sampler, grid, condition, side)


def _fit_together(config: dict, denoiser: Denoiser, loss: Loss, data: Data) -> None:
    """Let the loss meet the model and the data.  Raises UsageError where they do not go together."""
    if isinstance(denoiser, Fitted):
        return check_fit(chosen("network"), config)
    _check_coupling(config)
    check_forward(denoiser, config["condition"])
    if config["compile"] and (loss.double_backward or denoiser.double_backward):
        what = "loss" if loss.double_backward else "prediction"
        raise UsageError(f"compile=true cannot differentiate a network twice, as this {what} does", "compile=false")
    try:
        loss.setup(denoiser, training_set(data, config["condition"]))
    except ValueError as error:
        raise UsageError(f"loss: {error}") from error


def _check_coupling(config: dict) -> None:
    """Refuse a coupling, or a model for it to start from, that nothing here would use."""
    coupling, used = config["coupling"], "coupling" in config["loss"]
    if chosen("loss") == "ot_flow" and chosen("coupling") != "ot":
        raise UsageError("loss=ot_flow is loss=flow with coupling=ot", f"loss=flow coupling={chosen('coupling')}")
    if not used and not coupling["_target_"].endswith(".Independent"):
        raise UsageError("this loss gives each item its own noise, so a coupling would do nothing", "loss=flow")
    if config["ckpt"] is not None and not (used and "ckpt" in coupling):
        raise UsageError(
            "ckpt= is the model that a coupling starts from, and this training has no such coupling",
            "loss=flow coupling=reflow, or resume=PATH to go on with a training",
        )


def training_set(data: Data, condition: str = "none") -> TrainingSet:
    """What a loss may know of a data set."""

    def items():
        split = data.split("train")
        size = 8 * len(split) * math.prod(data.shape) / 2**30
        if size > LARGE:
            say(f"note: this reads all {len(split):,} training items into memory, up to {size:,.0f} GiB")
        return data.transform.encode(split.__getitems__(range(len(split)))[0])

    mixture = getattr(data, "mixture", None)
    return TrainingSet(items, tuple(data.shape), data.transform.levels, mixture, condition)
