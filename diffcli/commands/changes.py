"""Which settings of a training that goes on are not those of its checkpoint, and what of that may be."""

import inspect
from dataclasses import dataclass
from pathlib import Path

from diffcli.advice import nearest
from diffcli.commands.build import locate
from diffcli.errors import UsageError

MODEL = ("denoiser", "classifier", "data", "source")  # what a resumed run may not change
# what MODEL and loss hold already, and groups that hold nothing of their own
WITHIN = ("sde", "schedule", "network", "prediction", "levels", "level", "condition", "class_names")
ELSEWHERE = ("coupling", "ckpt", "sweep", "experiment", "devices", "device")
# what makes no difference to a weight, to the best of them, or to the order of the data
FREE = ("out", "overwrite", "debug", "dry_run", "resume", "resume_allow", "logger", "preview", "checkpoint", "workers")
FREE += ("timeout", "resident", "sampler", "grid")  # the last two of the previews
FREE += tuple(
    f"trainer.{name}"
    for name in ("log_every_n_steps", "max_time", "profiler", "detect_anomaly", "num_sanity_val_steps")
)
PLACES = ("data.root", "data.file", "data.download")  # where data lie, which are the same
ALIASES = {"devices": ("trainer.devices",), "device": ("trainer.accelerator",), "coupling": ("loss.coupling",)}
ALIASES |= {"ckpt": ("loss.coupling.ckpt",)}
NEW_ORDER = {
    "seed": "the order of the items and all noise are drawn anew",
    "batch_size": "the order of the items goes on where it was, each once an epoch",
    "trainer.devices": "the order of the items goes on where it was, each once an epoch",
    "trainer.num_nodes": "the order of the items goes on where it was, each once an epoch",
    "trainer.accumulate_grad_batches": "the order of the items goes on where it was, each once an epoch",
    "trainer.max_steps": "the cosine of optim.lr ends there",
}
# what checkpoints of older versions did, which lack these settings
BEFORE = {"cuda_graphs": False, "channels_last": False, "augment": {"flip": False, "shift": 0}}
BEFORE_EMA = {"profile": "constant", "width": 0.1}


@dataclass(frozen=True)
class Change:
    """A setting by its dotted name, and its values."""

    key: str
    was: object
    now: object

    def __str__(self) -> str:
        return f"{self.key} was {_plain(self.was)}, is now {_plain(self.now)}"


def _plain(value) -> str:
    return str(value["_target_"]).rpartition(".")[2] if isinstance(value, dict) and "_target_" in value else str(value)


def check_same(old: dict, new: dict, path: Path, moved: bool = False) -> list[Change]:
    """The settings that differ from those of a checkpoint and that resume_allow names.

    moved: whether the items are known to be the same, so that the data may lie elsewhere.
    Raises UsageError for another model, SDE or data set, and for any other change that resume_allow does not name.
    """
    check_allowed(new["resume_allow"], old, new)
    was, now = old.get("condition") or "none", new.get("condition") or "none"
    if was != now:
        raise UsageError(
            f"{path} was trained with condition={was}, not {now}", f"condition={was}, or a new run without resume"
        )
    for part in MODEL:
        found = list(_changes(old.get(part), new.get(part), part))
        found = [change for change in found if not (moved and change.key in PLACES)]
        if found:
            more = f" ({len(found)} differences in all)" if len(found) > 1 else ""
            raise UsageError(
                f"{path} was trained with another {part}: {found[0]}{more}",
                "the same settings, or a new run without resume",
            )
    old = BEFORE | old | {"ema": BEFORE_EMA | old.get("ema", {})}
    names = [k for k in old if k in new and k not in (*MODEL, *WITHIN, *ELSEWHERE)]
    found = [change for k in names for change in _changes(old[k], new[k], k) if not _is_free(change.key, old, new)]
    # a value that another setting takes over, as coupling=ot does the batch's size, follows it
    led = [(change.key, change.was, change.now) for change in found if "." not in change.key]
    found = [c for c in found if "." not in c.key or (c.key.rpartition(".")[2], c.was, c.now) not in led]
    allowed = [full for name in new["resume_allow"] for full in (name, *ALIASES.get(name, ()))]
    refused = [change for change in found if not any(_is_in(change.key, name) for name in allowed)]
    if refused:
        listed = ",".join(dict.fromkeys(_shortest(change.key, refused) for change in refused))
        raise UsageError(
            f"the settings differ from those of {path}: {'; '.join(map(str, refused))}",
            f"resume_allow=[{listed}] lets them change",
        )
    return found


def check_allowed(names: list[str], *configs: dict) -> None:
    """Raise UsageError for a name in resume_allow that is no setting, or one that no resumed run may change."""
    known = {key for config in configs for key in _keys(config)} | ALIASES.keys()
    for name in names:
        if name.partition(".")[0] in (*MODEL, *WITHIN):
            raise UsageError(
                f"resume_allow=[{name}]: the model, its SDE and its data cannot change in a resumed run",
                "a new run without resume",
            )
        if name not in known:
            raise UsageError(f"resume_allow=[{name}] names no setting{nearest(name, known)}", "resume_allow=[optim.lr]")


def _keys(node: dict, prefix: str = ""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _is_in(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _is_free(key: str, old: dict, new: dict) -> bool:
    if key == "trainer.max_steps":  # without a cosine, where a training ends changes no step before it
        return all(config["optim"].get("decay") == "none" for config in (old, new))
    return any(_is_in(key, name) for name in FREE)


def _shortest(key: str, all_: list[Change]) -> str:
    """The group of a setting where more than one of it differs, else the setting."""
    group = key.partition(".")[0]
    return group if sum(_is_in(change.key, group) for change in all_) > 1 else key


def _changes(old, new, key: str):
    """Every difference; a setting that one of the two lacks, being of another version, has its default there."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield Change(key, old, new)
        return
    if old.get("_target_") != new.get("_target_"):
        yield Change(key, old, new)
        return
    for name in dict.fromkeys((*old, *new)):
        values = [node[name] if name in node else _default(new, name) for node in (old, new)]
        if _default not in values:
            yield from _changes(*values, f"{key}.{name}")


def _default(node: dict, name: str):
    """What a node's class takes without this argument; this function itself where that is not known."""
    if "_target_" not in node:
        return _default
    found = inspect.signature(locate(node["_target_"], name)).parameters.get(name)
    known = found is not None and found.default is not found.empty
    return (list(found.default) if isinstance(found.default, tuple) else found.default) if known else _default
