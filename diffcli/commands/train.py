"""`diffcli train`: check everything, make the run's folder, train."""

import contextlib
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from diffcli import checkpoint
from diffcli.commands.build import build, check
from diffcli.commands.common import check_walk, chosen, pick_device, plain, recorded, typed
from diffcli.commands.fit import check_fit, fit_at_once
from diffcli.commands.model import parameters
from diffcli.commands.run_folder import RunFolder, choose, create, say, write_text
from diffcli.commands.settings import check_settings
from diffcli.data.base import Data
from diffcli.data.measure import MEASURES
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.fitted import Fitted
from diffcli.diffusion.loss import Loss, TrainingSet
from diffcli.errors import UsageError
from diffcli.explain.noise_sequence import sample_of, warnings
from diffcli.randomness import key

GROUPS = {
    "schedule", "sde", "levels", "prediction", "network", "data", "loss", "coupling", "optim", "trainer", "logger",
    "sampler", "grid", "denoiser", "sweep", "experiment",
}  # fmt: skip
WARNED_ON = 500  # items that the warnings are measured on, at most
MODEL = ("denoiser", "data")  # what a resumed run may not change
FREE = (
    "out",
    "overwrite",
    "debug",
    "dry_run",
    "resume",
    "resume_allow",
    "logger",
    "preview",
    "checkpoint",
    "workers",
    "device",
)


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


def run(cfg) -> int:
    prepare(cfg)
    parts = build_parts(plain(cfg))
    config = parts.config
    path, resume, done = _resume(config)
    steps = config["trainer"]["max_steps"]
    _warn(parts)
    if done:
        say(f"{path} has finished its {steps} steps already; a larger trainer.max_steps with resume=auto goes on")
        return 0
    fitted = isinstance(parts.denoiser, Fitted)
    if config["dry_run"] and fitted:
        say(f"would fit network={chosen('network')} to {len(parts.data.split('train')):,} items in {path}")
        return 0
    if config["dry_run"]:
        say(f"would train {parameters(parts.denoiser):,} parameters for {steps} steps in {path}")
        return 0
    trainer = None if fitted else build_trainer(config, path)
    logger = build(config["logger"] | {"save_dir": str(path)}, "logger") if config["logger"] and not fitted else None
    folder = create(path, "train", config, keep=resume is not None)
    write_text(path / "config.yaml", OmegaConf.to_yaml(config))
    with recorded(folder):
        if fitted:
            return fit_at_once(parts.denoiser, training_set(parts.data), parts, path, folder)
        return fit(parts, trainer, path, resume, folder, logger)


def _warn(parts: Parts) -> None:
    """Say on stderr where the path is too noisy at its start, or not enough at its end, for these data."""
    if parts.denoiser.sde.is_process and parts.denoiser.posterior_mean:
        for sentence in warnings(parts.denoiser.sde, sample_of(parts.data, WARNED_ON)):
            print(f"warning: {sentence}", file=sys.stderr)


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
    _check_devices(cfg.trainer)
    if typed("network=exact"):
        raise UsageError(
            "network=exact is known already and is not trained", "diffcli sample network=exact data=mixture"
        )
    data = build(OmegaConf.to_container(cfg.data, resolve=True), "data")
    for split in ("train", "val"):
        data.split(split)  # a missing file is found before anything is made
    check_clock(cfg)
    measure(cfg, data)
    _match_outputs(cfg)
    if "shape" in cfg.network:
        shape = list(data.shape)
        if cfg.network.shape is not None and list(cfg.network.shape) != shape:
            raise UsageError(f"network.shape={list(cfg.network.shape)} is not the data's, {shape}", "leave it out")
        cfg.network.shape = shape
    if "n" in cfg.network:
        n = len(data.split("train"))
        if cfg.network.n not in (None, n):
            raise UsageError(f"network.n={cfg.network.n} is not the number of training items, {n}", "leave it out")
        cfg.network.n = n


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
            node[name] = MEASURES[name](training_set(data).items())
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


def build_parts(config: dict) -> Parts:
    """Build every part of a plain config.  Raises UsageError for the first that does not fit."""
    data, loss, optim = (build(config[name], name) for name in ("data", "loss", "optim"))
    sampler, grid = build(config["sampler"], "sampler"), build(config["grid"], "grid")
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
    return Parts(config, data, denoiser, loss, optim, sampler, grid)


def _fit_together(config: dict, denoiser: Denoiser, loss: Loss, data: Data) -> None:
    """Let the loss meet the model and the data.  Raises UsageError where they do not go together."""
    if isinstance(denoiser, Fitted):
        return check_fit(chosen("network"), config)
    _check_coupling(config)
    if config["compile"] and (loss.double_backward or denoiser.double_backward):
        what = "loss" if loss.double_backward else "prediction"
        raise UsageError(f"compile=true cannot differentiate a network twice, as this {what} does", "compile=false")
    try:
        loss.setup(denoiser, training_set(data))
    except ValueError as error:
        raise UsageError(f"loss: {error}") from error


def _check_coupling(config: dict) -> None:
    """Refuse a coupling, or a model for it to start from, that nothing here would use."""
    coupling, used = config["coupling"], "coupling" in config["loss"]
    if not used and not coupling["_target_"].endswith(".Independent"):
        raise UsageError("this loss gives each item its own noise, so a coupling would do nothing", "loss=flow")
    if config["ckpt"] is not None and not (used and "ckpt" in coupling):
        raise UsageError(
            "ckpt= is the model that a coupling starts from, and this training has no such coupling",
            "loss=flow coupling=reflow, or resume=PATH to go on with a training",
        )


def training_set(data: Data) -> TrainingSet:
    """What a loss may know of a data set."""

    def items():
        split = data.split("train")
        return data.transform.encode(split.__getitems__(range(len(split)))[0])

    return TrainingSet(items, tuple(data.shape), data.transform.levels, getattr(data, "mixture", None))


def _resume(config: dict) -> tuple[Path, Path | None, bool]:
    """The run's folder, the checkpoint to go on from, and whether that one has reached the last step."""
    wish = config["resume"]
    if wish == "never":
        return choose("train", config), None, False
    if wish == "auto":
        if config["out"] is None:
            raise UsageError(
                "resume=auto looks in out=DIR, and no out is given", "out=DIR, or resume=PATH of a checkpoint"
            )
        path = Path(config["out"]).expanduser()
        found = _newest_whole(path / "checkpoints")
        if found is None:  # what a training left without a whole checkpoint may go, another command's run may not
            return choose("train", config | {"overwrite": config["overwrite"] or _is_training(path)}), None, False
    else:
        found = Path(wish).expanduser()
        checkpoint.read(found)
        home = found.parent.parent if found.parent.name == "checkpoints" else None
        path = Path(config["out"]).expanduser() if config["out"] else home or choose("train", config)
    content = checkpoint.read(found)
    _check_same(content["config"], config, found)
    say(f"resuming from {found} (step {content['global_step']})")
    return path, found, content["global_step"] >= config["trainer"]["max_steps"]


def _is_training(path: Path) -> bool:
    record = path / "run.json"
    return record.exists() and json.loads(record.read_text()).get("command") == "train"


def _newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that passes the checks; those that do not are named and skipped."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        if path.name == "best.ckpt":
            continue
        try:
            checkpoint.read(path)
        except checkpoint.CheckpointError as error:
            say(f"skipped: {error.message}")
            continue
        return path
    return None


def _check_same(old: dict, new: dict, path: Path) -> None:
    """Refuse to go on with another model or data; other differences must be named in resume_allow, and then apply."""
    for part in MODEL:
        if old[part] != new[part]:
            where = next(_differences(old[part], new[part], part))
            raise UsageError(
                f"{path} was trained with another {part}: {where}", "the same settings, or a new run without resume"
            )
    rest = [k for k in old if k not in MODEL + FREE and k in new and old[k] != new[k] and k not in new["resume_allow"]]
    rest = [
        k
        for k in rest
        if k not in ("sde", "schedule", "network", "prediction", "sampler", "grid", "sweep", "experiment")
    ]
    if rest:
        where = "; ".join(next(_differences(old[k], new[k], k)) for k in rest)
        raise UsageError(
            f"the settings differ from those of {path}: {where}", f"resume_allow=[{','.join(rest)}] lets them change"
        )


def _differences(old, new, path: str):
    if isinstance(old, dict) and isinstance(new, dict):
        for k in [*old, *(k for k in new if k not in old)]:
            if old.get(k) != new.get(k):
                yield from _differences(old.get(k), new.get(k), f"{path}.{k}")
    else:
        yield f"{path} was {old}, is now {new}"


def build_trainer(config: dict, path: Path):
    """Lightning's Trainer, without callbacks and loggers.  Raises UsageError for an option that it refuses."""
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = {k: v for k, v in config["trainer"].items() if k != "_target_"}
    fixed = dict(
        max_epochs=-1,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        default_root_dir=str(path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        logger=False,
    )
    try:
        return L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


def fit(parts: Parts, trainer, path: Path, resume: Path | None, folder: RunFolder | None = None, logger=None) -> int:
    """Train; rank 0 keeps the folder's record, the other ranks have none.  Returns the exit code."""
    from diffcli.training.checkpoints import AtomicCheckpointIO, Checkpoints
    from diffcli.training.ema import EMA
    from diffcli.training.loggers import MetricsCSV
    from diffcli.training.module import Training
    from diffcli.training.preview import Preview
    from diffcli.training.progress import Progress
    from diffcli.training.stop import GracefulStop

    config = parts.config
    max_steps, samples = config["trainer"]["max_steps"], config["batch_size"] * trainer.world_size
    if config["compile"]:
        parts.denoiser.network.compile()
    module = Training(
        parts.denoiser,
        parts.loss,
        parts.data,
        parts.optim,
        max_steps=max_steps,
        batch_size=config["batch_size"],
        seed=config["seed"],
        workers=config["workers"],
        dequantize=config["dequantize"] == "uniform",
        meta={"format": checkpoint.FORMAT, "config": config, "shape": list(parts.data.shape)},
    )
    ema = EMA(config["ema"]["decay"])
    preview = Preview(path, ema, parts.data, parts.sampler, parts.grid, config["seed"], **config["preview"])
    checkpoints = Checkpoints(path / "checkpoints", **config["checkpoint"])
    stop = GracefulStop(checkpoints)
    trainer.callbacks += [ema, Progress(samples, max_steps), preview, checkpoints, stop]
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    if folder is not None:
        at = checkpoint.read(resume)["global_step"] if resume else None
        trainer.loggers = [MetricsCSV(path / "metrics.csv", at), *([logger] if logger else [])]
        if logger is not None:
            logger.log_hyperparams(config)
        items = len(parts.data.split("train"))
        say(f"training {parameters(parts.denoiser):,} parameters on {items:,} items, in {path}")
    begun = time.process_time()
    with _as_worker_sees(path, resume):
        trainer.fit(module, ckpt_path=str(resume) if resume else None, weights_only=True)
    if folder is not None:
        _finish(folder, trainer, module, checkpoints, stop, samples, time.process_time() - begun)
    return stop.exit_code


@contextlib.contextmanager
def _as_worker_sees(path: Path, resume: Path | None):
    """While Lightning starts its other processes, argv is that of a worker that loads this run's resolved config.

    Lightning re-runs argv in them, or Hydra's command line where Hydra is in use, and both would compose the config anew and
    make folders of their own.  Afterwards the process group is taken down, so that the next job of a sweep can have its own.
    """
    from hydra.core.hydra_config import HydraConfig

    import __main__

    instance = HydraConfig.instance()
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DIFFCLI_RUN_DIR", "DIFFCLI_RESUME")
    saved = instance.cfg, sys.argv, getattr(__main__, "__spec__", None), {k: os.environ.get(k) for k in names}
    instance.cfg, sys.argv = None, [str(Path(__file__).resolve().parents[1] / "_worker.py")]
    __main__.__spec__ = None
    os.environ["DIFFCLI_RUN_DIR"] = str(Path(path).resolve())
    os.environ["DIFFCLI_RESUME"] = str(resume.resolve()) if resume else ""
    try:
        yield
    finally:
        instance.cfg, sys.argv, __main__.__spec__, environment = saved
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _finish(folder: RunFolder, trainer, module, checkpoints, stop, samples: int, cpu_seconds: float) -> None:
    metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
    seen = module.batches * samples
    results = {
        "images_seen": seen,
        "loss": metrics.get("loss"),
        "val_loss": metrics.get("val_loss"),
        "best_val_loss": checkpoints.best if checkpoints.best < float("inf") else None,
        "samples_per_second": metrics.get("samples_per_second"),
        "cpu_seconds": round(cpu_seconds, 1),
        "parameters": parameters(module.denoiser),
    }
    status = "stopped" if stop.exit_code else "finished"
    folder.write(status, steps=trainer.global_step, nfe=seen, results=results)
    val = f", val_loss {metrics['val_loss']:.4f}" if "val_loss" in metrics else ""
    say(f"{status} at step {trainer.global_step}, {folder.record['seconds']:.0f} s{val}")
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "denoised.png"):
        if (folder.path / name).exists():
            say(f"  {folder.path / name}")
    if stop.exit_code:
        say(f"to go on: diffcli train … out={folder.path} resume=auto")
