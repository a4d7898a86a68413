"""`diffcli train`: check everything, make the run's folder, train."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf

from diffcli import checkpoint
from diffcli.commands.classify import ClassifierParts
from diffcli.commands.common import chosen, plain, recorded, typed
from diffcli.commands.fit import fit_at_once
from diffcli.commands.launch import Launched, arithmetic, build_trainer, fill_in, launched, placed
from diffcli.commands.logging import build_logger
from diffcli.commands.model import parameters
from diffcli.commands.prepare import Parts, build_parts, prepare, training_set
from diffcli.commands.requeue import comes_back, job, saved_first
from diffcli.commands.resume import is_within, resume_from, set_aside
from diffcli.commands.run_folder import RunFolder, create, look, place, say, write_text
from diffcli.commands.settings import seconds
from diffcli.commands.together import Meeting, meeting, running, watched, work
from diffcli.commands.train_forecast import forecast
from diffcli.commands.usage import peak_memory, scratch
from diffcli.data.base import identity
from diffcli.diffusion.fitted import Fitted
from diffcli.errors import DiffcliError, UsageError
from diffcli.explain.noise_sequence import sample_of, warnings

if TYPE_CHECKING:
    from diffcli.training.processes import Processes
    from diffcli.training.trial import Trial

WARNED_ON = 500  # items that the warnings are measured on, at most


def run(cfg) -> int:
    return saved_first(lambda: _run(cfg))


def _run(cfg) -> int:
    found = launched()
    with meeting(found, cfg.timeout) as here:
        if found.rank == 0:
            return _lead(cfg, found, here)
        word = here.hear()  # rank 0 alone reads the command line
        return word["code"] if "code" in word else follow(placed(found, word), word["port"])


def _lead(cfg, found: Launched, here: Meeting | None) -> int:
    fill_in(cfg, found)
    prepare(cfg)
    parts = build_parts(plain(cfg))
    config = parts.config
    if not typed("resume=") and comes_back(place(config)):
        config["resume"] = "auto"
    looked = look(place(config)) if config["resume"] == "auto" else None
    path, resume, done, told = resume_from(parts)
    steps = config["trainer"]["max_steps"]
    _warn(parts)
    if done:
        say(f"{path} has finished its {steps} steps already")
        say("to go on: a larger trainer.max_steps, with resume=auto resume_allow=[trainer.max_steps]")
        return 0
    fitted = isinstance(parts.model, Fitted)
    if config["dry_run"]:
        fit_ = f"fit network={chosen('network')} to {len(parts.data.split('train')):,} items"
        train = f"train {parameters(parts.model):,} parameters for {steps} steps"
        for line in (*told, f"would {fit_ if fitted else train} in {path}"):
            say(line)
        return 0 if fitted else _try(parts, path, resume, found, here)
    trainer = None if fitted else build_trainer(config, path, found)
    logger = None if fitted else build_logger(config, path)
    goes_on = is_within(resume, path) or (looked is not None and not config["overwrite"])
    folder = create(path, "train", config, keep=goes_on, looked=looked)
    with recorded(folder):
        for line in told:
            say(line)
        folder.write("running", job=job())
        write_text(path / "config.yaml", OmegaConf.to_yaml(config))
        if fitted:
            return fit_at_once(parts.denoiser, training_set(parts.data), parts, path, folder)
        set_aside(path, resume)
        return fit(parts, trainer, path, resume, folder, logger, here)


def _try(parts: Parts | ClassifierParts, path: Path, resume: Path | None, found: Launched, here: Meeting | None) -> int:
    """Train a few steps in a folder that is removed, and say what all of them will take."""
    from diffcli.training.trial import Trial

    with scratch(path) as there:
        trainer, trial = build_trainer(parts.config, there, found), Trial(parts.config["compile"])
        code = fit(parts, trainer, there, resume, here=here, trial=trial)
    for line in forecast(parts.config, trial, trainer) if code == 0 else ():
        say(line)
    return code


def follow(processes: "Processes", port: int) -> int:
    """A rank that is not the first: it loads what rank 0 made of the command line, trains with it, and writes nothing."""
    from diffcli.training.trial import Trial

    processes.open(port=port)
    config, path, resume = work(processes)
    try:
        with watched(processes, config["timeout"]):
            trainer = build_trainer(config, path, processes=processes)
            trial = Trial(config["compile"]) if config["dry_run"] else None
            return fit(build_parts(config), trainer, path, resume, trial=trial)
    except DiffcliError as error:
        if processes.watch.alone:
            raise
        return error.exit_code  # rank 0 has heard of it, and says it


def _warn(parts: Parts | ClassifierParts) -> None:
    """Say on stderr where the path is too noisy at its start, or not enough at its end, for these data."""
    sde = parts.model.sde
    if sde is not None and sde.is_process and getattr(parts.model, "posterior_mean", True):
        for sentence in warnings(sde, sample_of(parts.data, WARNED_ON)):
            print(f"warning: {sentence}", file=sys.stderr)


def fit(
    parts: Parts | ClassifierParts,
    trainer,
    path: Path,
    resume: Path | None,
    folder: RunFolder | None = None,
    logger=None,
    here: Meeting | None = None,
    trial: "Trial | None" = None,
) -> int:
    """Train; rank 0 keeps the folder's record, the other ranks have none, and a trial has none.  Returns the exit code."""
    from diffcli.training.agreement import Agreement
    from diffcli.training.augment import Augment
    from diffcli.training.checkpoints import AtomicCheckpointIO, Checkpoints, sweep
    from diffcli.training.classification import Classification
    from diffcli.training.ema import EMA
    from diffcli.training.ema_profile import profile_of
    from diffcli.training.loggers import CLASSIFIED, COLUMNS, MetricsCSV
    from diffcli.training.module import Training
    from diffcli.training.preview import Preview
    from diffcli.training.progress import Progress
    from diffcli.training.resumption import rows_kept
    from diffcli.training.stop import GracefulStop

    config = parts.config
    max_steps, samples = config["trainer"]["max_steps"], config["batch_size"] * trainer.world_size
    if config["channels_last"]:
        parts.model.network.to(memory_format=torch.channels_last)
    if config["compile"]:
        parts.model.network.compile(mode="reduce-overhead" if config["cuda_graphs"] else None)
    classifies = isinstance(parts, ClassifierParts)
    more = {} if classifies else {"condition": parts.condition}
    agreement = Agreement()
    module = (Classification if classifies else Training)(
        parts.model,
        parts.loss,
        parts.data,
        parts.optim,
        max_steps=max_steps,
        batch_size=config["batch_size"],
        seed=config["seed"],
        workers=config["workers"],
        resident=config["resident"] * 2**20,
        augment=Augment(parts.data, **config["augment"]),
        dequantize=config["dequantize"] == "uniform",
        meta={
            "format": checkpoint.FORMAT,
            "config": config,
            "shape": list(parts.data.shape),
            "items": identity(parts.data.split("train")),
        },
        agreement=agreement,
        **more,
    )
    ema = EMA(profile_of(**config["ema"]))
    progress, preview = [Progress(samples, max_steps)] if trial is None else [], None
    if not classifies:
        seen = parts.data, parts.sampler, parts.grid, config["seed"]
        more = {"condition": parts.condition, "side": parts.side, "agreement": agreement}
        progress.append(preview := Preview(path, ema, *seen, **config["preview"], **more))
    checkpoints = Checkpoints(path / "checkpoints", **config["checkpoint"], agreement=agreement)
    limit = seconds(config["trainer"]["max_time"]) if trial is None else None
    stop = GracefulStop(checkpoints, agreement, limit, tells=folder is not None)
    trainer.callbacks += [ema, *progress, checkpoints, stop]
    if trial is not None:
        trainer.callbacks.append(trial.watch(checkpoints, preview))
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    if folder is not None:
        sweep(path)
        at = rows_kept(checkpoint.read(resume, None)) if resume else None
        columns = CLASSIFIED if classifies else COLUMNS
        trainer.loggers = [MetricsCSV(path / "metrics.csv", at, columns), *([logger] if logger else [])]
        if logger is not None:
            logger.log_hyperparams(config)
        items = len(parts.data.split("train"))
        if line := arithmetic(config, trainer.num_devices, trainer.num_nodes):
            say(line)
        say(f"training {parameters(parts.model):,} parameters on {items:,} items, in {path}")
    begun = time.process_time()
    with running(trainer, path, config, resume, here, folder), stop.listening(trainer):
        try:
            trainer.fit(module, ckpt_path=str(resume) if resume else None, weights_only=True)
        except UsageError as error:  # which stands for a run that did not start
            if not module.batches:
                raise
            raise DiffcliError(error.message, error.hint) from error
    if trial is not None and not stop.stopped:
        module.results(lambda: ema.applied(module))
        trial.lap("end")
    if folder is not None:
        _finish(folder, trainer, module, ema, checkpoints, stop, time.process_time() - begun)
    return stop.exit_code


def _finish(folder: RunFolder, trainer, module, ema, checkpoints, stop, cpu_seconds: float) -> None:
    metrics = module.journal.latest | module.figures | {k: v.item() for k, v in trainer.callback_metrics.items()}
    seen = module.seen
    results = {
        "images_seen": seen,
        "loss": metrics.get("loss"),
        "val_loss": metrics.get("val_loss"),
        "best_val_loss": checkpoints.best if checkpoints.best < float("inf") else None,
        "samples_per_second": metrics.get("samples_per_second"),
        "cpu_seconds": round(cpu_seconds, 1),
        "parameters": parameters(module.model),
        "peak_memory": peak_memory(trainer.strategy.root_device),
    }
    if not stop.stopped:
        results |= module.results(lambda: ema.applied(module))
    status = "stopped" if stop.stopped and trainer.global_step < module.max_steps else "finished"
    folder.write(status, steps=trainer.global_step, nfe=seen, results=results)
    val = f", val_loss {metrics['val_loss']:.4f}" if "val_loss" in metrics else ""
    say(f"{status} at step {trainer.global_step}, {folder.record['seconds']:.0f} s{val}")
    for line in module.told(results):
        say(line)
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "denoised.png"):
        if (folder.path / name).exists():
            say(f"  {folder.path / name}")
    if status == "stopped":
        say(f"to go on: diffcli train … out={folder.path} resume=auto")
