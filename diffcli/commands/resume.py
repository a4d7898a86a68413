"""Where a training goes on: its folder, the newest whole checkpoint, and whether the settings are still the same."""

import json
from pathlib import Path

from diffcli import checkpoint
from diffcli.commands.run_folder import choose, say
from diffcli.errors import UsageError

MODEL = ("denoiser", "classifier", "data", "source")  # what a resumed run may not change
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


def resume_from(config: dict) -> tuple[Path, Path | None, bool]:
    """The run's folder, the checkpoint to go on from, and whether that one has reached the last step."""
    wish, part = config["resume"], next(name for name in checkpoint.MODELS if name in config)
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
        checkpoint.read(found, part)
        home = found.parent.parent if found.parent.name == "checkpoints" else None
        path = Path(config["out"]).expanduser() if config["out"] else home or choose("train", config)
    content = checkpoint.read(found, part)
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
            checkpoint.read(path, None)
        except checkpoint.CheckpointError as error:
            say(f"skipped: {error.message}")
            continue
        return path
    return None


def _check_same(old: dict, new: dict, path: Path) -> None:
    """Refuse to go on with another model or data; other differences must be named in resume_allow, and then apply."""
    was, now = old.get("condition") or "none", new.get("condition") or "none"
    if was != now:
        raise UsageError(
            f"{path} was trained with condition={was}, not {now}", f"condition={was}, or a new run without resume"
        )
    for part in MODEL:
        if old.get(part) != new.get(part):
            where = next(_differences(old.get(part), new.get(part), part))
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
