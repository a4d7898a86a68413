"""The settings that are no group's: their types and ranges, checked before anything is built."""

import re
from typing import Any, Literal

from diffcli.advice import nearest
from diffcli.commands.build import check_type
from diffcli.errors import UsageError

# Lightning's strategies that start processes by running a file; those that fork or spawn would meet Hydra again
STRATEGIES = ("auto", "single_device", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
STRATEGIES += ("fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
PRECISIONS = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "transformer-engine")
PRECISIONS += (32, 64, 16, "32", "64", "16", "bf16")
# what training decides itself: Lightning counts optimiser steps here, and its own files and bars are off
FIXED = ("max_epochs", "min_epochs", "check_val_every_n_epoch", "use_distributed_sampler", "default_root_dir")
FIXED += ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode", "logger")
FIXED += ("callbacks", "barebones")

# key -> (type, least, greatest); None is no bound
SETTINGS: dict[str, tuple[Any, float | None, float | None]] = {
    "out": (str | None, None, None),
    "overwrite": (bool, None, None),
    "seed": (int, 0, None),
    "device": (Literal["auto", "cpu", "cuda"] | None, None, None),
    "devices": (int | None, 1, None),
    "batch_size": (int, 1, None),
    "debug": (bool, None, None),
    "dry_run": (bool, None, None),
    "resume": (str, None, None),
    "resume_allow": (list[str], None, None),
    "compile": (bool, None, None),
    "cuda_graphs": (bool, None, None),
    "channels_last": (bool, None, None),
    "timeout": (int | float, 1, 10**7),
    "workers": (int, 0, None),
    "resident": (int | float, 0, None),
    "augment.flip": (bool, None, None),
    "augment.shift": (int, 0, None),
    "condition": (Literal["none", "label", "vector", "image"], None, None),
    "drop": (float | None, 0, 1),
    "source_noise": (float, 0, None),
    "label": (Any, None, None),
    "vector": (Any, None, None),
    "input": (list[str] | str | None, None, None),
    "inputs": (int, 1, None),
    "each": (int | None, 1, None),
    "dequantize": (Literal["uniform", "none"], None, None),
    "ema.profile": (Literal["constant", "power"], None, None),
    "ema.decay": (float, 0, 1),
    "ema.width": (float, 0.001, 0.28),
    "checkpoint.every": (int, 1, None),
    "checkpoint.minutes": (float | int | None, 0, None),
    "checkpoint.keep": (int, 0, None),
    "preview.every": (int, 0, None),
    "preview.n": (int, 1, None),
    "preview.steps": (int, 1, None),
    "ckpt": (str | None, None, None),
    "path": (str, None, None),
    "weights": (Literal["ema", "raw"], None, None),
    "trust": (str | None, None, None),
    "dtype": (Literal["float32", "float64"], None, None),
    "precision": (Literal["full", "bf16"], None, None),
    "level.alpha": (float, None, None),
    "level.sigma": (float, 0, None),
    "dequantize_samples": (int, 1, None),
    "also": (Literal["elbo"] | None, None, None),
    "elbo.bound": (Literal["auto", "discrete", "continuous"], None, None),
    "elbo.times": (int | Literal["all"], 2, None),
    "elbo.T": (int | None, 2, None),
    "elbo.variance": (Literal["auto", "small", "large", "learned"], None, None),
    "elbo.decoder": (Literal["auto", "bin", "density"], None, None),
    "n": (int | None, 1, 10**9),
    "split": (Literal["train", "val", "test", "all"], None, None),
    "steps": (int | None, 1, 10**6),
    "nfe": (int | None, 1, 10**6),
    "last": (Literal["stop", "denoise"] | None, None, None),
    "repeats": (int, 1, 1000),
    "kept": (int, 2, None),
    "compared": (int, 2, None),
    "keep_samples": (bool, None, None),
    "neighbours": (bool, None, None),
    "floor": (bool, None, None),
    "samples": (str | None, None, None),
    "cards": (list[str] | str | None, None, None),
    "start": (str | None, None, None),
    "to": (str | None, None, None),
    "noised": (bool | None, None, None),
    "a": (list[str | int] | str | int | None, None, None),
    "b": (list[str | int] | str | int | None, None, None),
    "frames": (int, 2, 1000),
    "way": (Literal["ode", "stochastic"], None, None),
    "t": (float, 0, 1),
    "noise": (Literal["shared", "own"], None, None),
    "trajectory": (bool, None, None),
    "png": (bool, None, None),
    "samplers": (list[str] | str, None, None),
    "endpoints": (int, 1, None),
    "format": (Literal["text", "markdown"], None, None),
    "dir": (str, None, None),
    "by": (str | None, None, None),
    "checks": (list[str] | str, None, None),
    "times": (int, 1, 1000),
    "probes": (int, 1, 1000),
    "exact_up_to": (int, 0, 256),
    "self_check": (bool, None, None),
    "what": (Literal["all", "times"], None, None),
    "held": (int, 1, 10**6),
    "rounds": (int | None, 0, 10**6),
    # Lightning's own, where a wrong value would only fail late or be taken for something else
    "trainer.max_steps": (int, 1, None),
    "trainer.devices": (int | Literal["auto"] | list[int], 1, None),
    "trainer.accelerator": (Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"], None, None),
    "trainer.strategy": (Literal[STRATEGIES], None, None),
    "trainer.precision": (Literal[PRECISIONS], None, None),
    "trainer.num_nodes": (int, 1, None),
    "trainer.accumulate_grad_batches": (int, 1, None),
    "trainer.gradient_clip_val": (float | None, 0, None),
    "trainer.gradient_clip_algorithm": (Literal["norm", "value"] | None, None, None),
    "trainer.val_check_interval": (int, 1, None),
    "trainer.limit_val_batches": (int | float | None, 0, None),
    "trainer.log_every_n_steps": (int, 1, None),
    "trainer.max_time": (str | None, None, None),
    "trainer.num_sanity_val_steps": (int, 0, None),
    "trainer.deterministic": (bool | Literal["warn"] | None, None, None),
    "trainer.benchmark": (bool | None, None, None),
    "trainer.detect_anomaly": (bool, None, None),
    "trainer.sync_batchnorm": (bool, None, None),
    "trainer.profiler": (Literal["simple", "advanced", "pytorch"] | None, None, None),
}


COMPARED = {"nfe": (list[int] | int, 1, None)}  # of the command that has `samplers`: several budgets
FITTED = {"steps": (list[int] | int, 1, None)}  # of the command that has `rounds`: several walks
MEASURED = {"dequantize": (Literal["uniform", "none", "importance"], None, None)}  # of the command that has `also`


def check_settings(config: dict, groups: set[str]) -> None:
    """Check every setting of a plain config that belongs to no group.  Raises UsageError for the first unfit one."""
    flat = dict(_flat({k: v for k, v in config.items() if k not in groups or k == "trainer"}))
    own = {"samplers": COMPARED, "rounds": FITTED, "also": MEASURED}
    known = SETTINGS | {key: value for name, more in own.items() if name in flat for key, value in more.items()}
    for key, value in flat.items():
        if key in known:
            hint, least, greatest = known[key]
            if value == "":  # an empty path would be the current folder
                raise UsageError(f"{key}= is empty", f"{key}=VALUE, or leave it out")
            check_type(value, hint, key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if least is not None and value < least:
                    raise UsageError(f"{key} must be at least {least}, got {value}")
                if greatest is not None and value > greatest:
                    raise UsageError(f"{key} must be at most {greatest}, got {value}")
        elif key.startswith("trainer."):
            if key.split(".")[1] in FIXED:
                raise UsageError(f"{key} is fixed by diffcli", "trainer.max_steps, out, logger, checkpoint.every")
        else:
            raise UsageError(f"there is no setting {key!r}{nearest(key, SETTINGS)}")
    seconds(flat.get("trainer.max_time"))


def seconds(duration: str | None) -> float | None:
    """What DD:HH:MM:SS says.  Raises UsageError for anything else, and for no time at all."""
    if duration is None:
        return None
    fits = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", duration.strip())
    days, hours, minutes, rest = map(int, fits.groups() if fits else (0, 0, 0, 0))
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if total == 0:
        raise UsageError(f"trainer.max_time={duration} is no duration DD:HH:MM:SS", "trainer.max_time=00:11:50:00")
    return total


def _flat(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
