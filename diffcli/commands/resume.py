"""Where a training goes on: its folder, the newest whole checkpoint, and whether the settings are still the same."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from diffcli import checkpoint
from diffcli.commands.changes import NEW_ORDER, Change, check_allowed, check_same
from diffcli.commands.run_folder import choose, place, say
from diffcli.data.base import identity
from diffcli.errors import UsageError
from diffcli.training.resumption import check_state
from diffcli.untrusted.archive import glance

NAMES = ("last", "step", "best")  # of checkpoints of the same step, the first that is whole


class Beginning(NamedTuple):
    """The run's folder, the checkpoint to go on from, whether that one has reached the last step, and what to say of it."""

    path: Path
    checkpoint: Path | None = None
    done: bool = False
    told: tuple[str, ...] = ()


def resume_from(parts) -> Beginning:
    """Where a training begins.  Raises UsageError for settings that may not have changed, CheckpointError for a bad file."""
    config = parts.config
    wish, home = config["resume"], None
    check_allowed(config["resume_allow"], config)
    if wish == "never":
        return Beginning(choose("train", config))
    if wish == "auto":
        home = place(config)
        if home is None:
            raise UsageError(
                "resume=auto looks in out=DIR, and no out is given", "out=DIR, or resume=PATH of a checkpoint"
            )
        found = next((path for path in _newest_first(home / "checkpoints") if _is_whole(path, parts)), None)
        if found is None:  # anew over a training without a whole one, never over another command's run
            again = config["overwrite"] or _record(home).get("command") == "train"
            there = any((home / "checkpoints").glob("*.ckpt"))
            told = (f"no checkpoint in {home} can be gone on from: starting again from step 0",) if there else ()
            return Beginning(choose("train", config | {"overwrite": again}), told=told)
    else:
        found = Path(wish).expanduser()
        if not found.exists():
            raise UsageError(
                f"resume={wish}: there is no such checkpoint", "resume=auto, resume=never, or a checkpoint's path"
            )
    content = _checked(found, parts)
    path = home or _folder_of(found, config)
    told = []
    for change in _settings(content, parts, found):
        said = f" ({NEW_ORDER[change.key]})" if change.key in NEW_ORDER else ""
        told.append(f"changed: {change}{said}")
    told.append(f"resuming from {found} (step {content['global_step']})")
    finished = _record(found.parent.parent).get("status", "finished") == "finished"
    whole = wish != "auto" or found.name == "last.ckpt"  # else that one is still to be written
    done = content["global_step"] >= config["trainer"]["max_steps"] and finished and whole
    return Beginning(path, found, done, tuple(told))


def _folder_of(found: Path, config: dict) -> Path:
    """The folder of a run that goes on from this checkpoint: `out`, else its own."""
    home = found.parent.parent if found.parent.name == "checkpoints" else None
    out = Path(config["out"]).expanduser() if config["out"] else home
    same = home is not None and out is not None and out.resolve() == home.resolve()
    return home if same else choose("train", config)


def is_within(resume: Path | None, path: Path) -> bool:
    """Whether a run goes on in the folder of its checkpoint, whose other files it then keeps."""
    return resume is not None and resume.resolve().is_relative_to(path.resolve())


def set_aside(path: Path, resume: Path | None) -> None:
    """Rename the checkpoints of later steps than the one that a run in this folder goes on from, and damaged ones.

    They are of a way that is not gone on; left there, they would be taken for the newest.  Of a run that starts anew it is all
    of them: one that could not be read today may be whole tomorrow.
    """
    if resume is not None and not is_within(resume, path):
        return
    step = -1 if resume is None else _step(resume)
    for other in (path / "checkpoints").glob("*.ckpt"):
        if _step(other) > step:
            other.replace(other.with_name(f"{other.name}.old"))
            say(f"set aside: {other}.old")


def _record(path: Path) -> dict:
    try:
        record = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _newest_first(folder: Path) -> list[Path]:
    """Checkpoints by their steps, as far as those can be read: the times of files are lost where a run is copied."""
    rank = {
        path: next((i for i, name in enumerate(NAMES) if path.name.startswith(name)), 9)
        for path in folder.glob("*.ckpt")
    }
    return sorted(rank, key=lambda path: (-_step(path), rank[path], path.name))


def _step(path: Path) -> float:
    """The step of a checkpoint, of which no more than its index is read; infinite for one that is damaged."""
    try:
        step = glance(path)["global_step"]
    except Exception:  # noqa: BLE001 - damaged files fail in many ways inside torch; what is wrong is said when it is read
        return math.inf
    return step if type(step) is int else math.inf


def _settings(content: dict, parts, path: Path) -> list[Change]:
    """The settings that differ and may.  Raises UsageError for those that may not, and for other items under the same name."""
    was, now = content.get("items"), identity(parts.data.split("train"))
    changes = check_same(content["config"], parts.config, path, moved=was == now)
    if was not in (None, now):
        raise UsageError(
            f"{path} was trained on other data: the training items were {was}, are now {now}",
            "the same files, or a new run without resume",
        )
    return changes


def _is_whole(path: Path, parts) -> bool:
    """Whether a checkpoint passes all checks; what is wrong with it is said.  Raises UsageError where the settings differ."""
    try:
        _checked(path, parts)
    except checkpoint.CheckpointError as error:
        say(f"skipped: {error.message}")
        return False
    return True


def _checked(path: Path, parts) -> dict:
    """The contents of a checkpoint that this training can go on from.

    Raises CheckpointError for a damaged or foreign one, UsageError where its settings are others.
    """
    part = next(name for name in checkpoint.MODELS if name in parts.config)
    content = checkpoint.read(path, None)
    held = next(name for name in checkpoint.MODELS if isinstance(content["config"].get(name), dict))
    if held != part:
        raise UsageError(
            f"{path} is {checkpoint.MODELS[held]}, not {checkpoint.MODELS[part]}",
            "the same task, or a new run without resume",
        )
    _settings(content, parts, path)
    modules = {part: parts.model, "loss": parts.loss}
    weights = {f"{at}.{k}": v for at, module in modules.items() for k, v in module.state_dict().items()}
    trained = [f"{at}.{k}" for at, module in modules.items() for k, p in module.named_parameters() if p.requires_grad]
    check_state(content, weights, trained, path, content["config"].get("loss") != parts.config.get("loss"))
    return content
