"""The settings that are no group's: their types and ranges, checked before anything is built."""

from typing import Any, Literal

from diffcli.advice import nearest
from diffcli.commands.build import check_type
from diffcli.errors import UsageError

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
    "workers": (int, 0, None),
    "dequantize": (Literal["uniform", "none"], None, None),
    "ema.decay": (float, 0, 1),
    "checkpoint.every": (int, 1, None),
    "checkpoint.keep": (int, 0, None),
    "preview.every": (int, 0, None),
    "preview.n": (int, 1, None),
    "preview.steps": (int, 1, None),
    "ckpt": (str | None, None, None),
    "weights": (Literal["ema", "raw"], None, None),
    "trust": (str | None, None, None),
    "dtype": (Literal["float32", "float64"], None, None),
    "n": (int | None, 1, None),
    "split": (Literal["train", "val", "test", "all"], None, None),
    "steps": (int | None, 1, None),
    "nfe": (int | None, 1, None),
    "last": (Literal["stop", "denoise"] | None, None, None),
    "start": (str | None, None, None),
    "trajectory": (bool, None, None),
    "png": (bool, None, None),
    # Lightning's own, where a wrong value would only fail late or be taken for something else
    "trainer.max_steps": (int, 1, None),
    "trainer.devices": (int | str | list[int], 1, None),
    "trainer.num_nodes": (int, 1, None),
    "trainer.accumulate_grad_batches": (int, 1, None),
    "trainer.gradient_clip_val": (float | None, 0, None),
    "trainer.val_check_interval": (int, 1, None),
    "trainer.limit_val_batches": (int | float | None, 0, None),
    "trainer.log_every_n_steps": (int, 1, None),
    "trainer.max_time": (str | None, None, None),
}


def check_settings(config: dict, groups: set[str]) -> None:
    """Check every setting of a plain config that belongs to no group.  Raises UsageError for the first that does not fit."""
    flat = dict(_flat({k: v for k, v in config.items() if k not in groups or k == "trainer"}))
    for key, value in flat.items():
        if key in SETTINGS:
            hint, least, greatest = SETTINGS[key]
            check_type(value, hint, key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if least is not None and value < least:
                    raise UsageError(f"{key} must be at least {least}, got {value}")
                if greatest is not None and value > greatest:
                    raise UsageError(f"{key} must be at most {greatest}, got {value}")
        elif not key.startswith("trainer"):
            raise UsageError(f"there is no setting {key!r}{nearest(key, SETTINGS)}")


def _flat(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
