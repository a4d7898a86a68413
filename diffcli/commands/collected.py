"""The runs in a tree of folders, as their records tell of them: what was asked for, what came of it."""

import fcntl
import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffcli.commands.figures import Value, figures
from diffcli.commands.folder_lock import NAME as LOCK
from diffcli.commands.job import REFUSED

# where there are no runs, and what a walk would go through for nothing
CLOSED = ("checkpoints", "samples", "partial", "wandb", "tensorboard", "frames", ".submitit", ".git")
# what says where and how a run was made, and nothing of what came of it
ASIDE = (
    "out",
    "overwrite",
    "debug",
    "dry_run",
    "resume",
    "resume_allow",
    "device",
    "devices",
    "trust",
    "sweep",
    "experiment",
)
ASIDE += ("logger", "preview", "checkpoint")
MEASURES = ("nll", "evaluate")  # commands whose figures are the model's


@dataclass
class Run:
    """One run.  settings: its config, flat, without repetitions.  name: its folder as seen from the tree's.

    linked: figures of the model that other runs in the tree have measured, by their command.
    """

    path: Path
    name: str
    command: str
    status: str
    settings: dict[str, object]
    figures: dict[str, Value]
    error: str = ""
    seconds: float | None = None
    steps: int | None = None
    nfe: object = None
    started: str = ""
    ckpt: str | None = None
    linked: dict[str, "Run"] = field(default_factory=dict)
    several: set[str] = field(default_factory=set)  # commands of which `linked` holds the newest of more than one

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def collect(folder: Path) -> tuple[list[Run], list[str]]:
    """Every run in `folder` and below, in the order of their names, and what could not be read, as sentences."""
    found, unread = [], []
    for path in _records(folder):
        try:
            record = json.loads(path.read_text())
            found.append(_run(path.parent, folder, record))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            unread.append(f"{path} cannot be read ({error})")
    _link(found)
    return found, unread


def _records(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = sorted((f for f in folders if f not in CLOSED), key=_by_number)
        for name in ("run.json", REFUSED):
            if name in files:
                yield Path(at) / name
                break


def _by_number(name: str) -> tuple:
    """Job 2 before job 10."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)


def _run(path: Path, root: Path, record: dict) -> Run:
    config = record.get("config") or {}
    results = record.get("results") or {}
    name, nfe = path.relative_to(root).as_posix(), record.get("nfe")
    run = Run(
        path=path.resolve(),
        name=path.resolve().name if name == "." else name,
        command=str(record["command"]),
        status=str(record["status"]),
        settings=settings(config) if config else asked(record.get("overrides") or []),
        figures=figures(record),
        error=str(results.get("error") or record.get("error") or ""),
        seconds=record.get("seconds"),
        steps=record.get("steps"),
        nfe=nfe["mean"] if isinstance(nfe, dict) and "mean" in nfe else nfe,
        started=str(record.get("started") or ""),
        ckpt=config.get("ckpt"),
    )
    if run.status == "running" and not held(path):
        run.status, run.error = "gone", "it ended without a word, as by kill -9, or runs where locks do not reach"
    if run.finished and any(not value.sound for value in run.figures.values()):
        run.error = "some of its figures are not finite"
    return run


def asked(overrides: list[str]) -> dict[str, object]:
    """The settings of a job that was refused, as they were typed."""
    pairs = (word.lstrip("+").partition("=") for word in overrides)
    return {key: value for key, _, value in pairs if key.partition(".")[0] not in ASIDE}


def settings(config: dict) -> dict[str, object]:
    """A config as `key: value`, each part once: `sde: VP`, `optim.lr: 0.001`.

    In a record an SDE holds its schedule and a prediction its SDE and network, which are there by themselves as well.
    """
    config = {k: v for k, v in config.items() if k not in ASIDE}
    model = config.pop("denoiser", None)
    if isinstance(model, dict):
        parts = {k: v for k, v in model.items() if k in ("network", "sde")}
        rest = {k: v for k, v in model.items() if k not in parts}
        config = {**parts, **({"prediction": rest} if rest else {})} | {
            k: v for k, v in config.items() if v is not None
        }
    return dict(_flat(config, config))


def _flat(node: dict, whole: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if prefix and isinstance(value, dict) and key in whole:
            continue  # told at its own place
        if value == {}:
            yield prefix + key, None  # none of its options
        elif isinstance(value, dict):
            yield from _flat(value, whole, f"{prefix}{key}.")
        elif key == "_target_":
            yield prefix.rstrip("."), str(value).rpartition(".")[2]
        else:
            yield prefix + key, value


def held(folder: Path) -> bool:
    """Whether a process is writing there: its lock on the folder, which is looked at and not taken."""
    if sys.platform != "linux":  # the layout of the question is each system's own
        return True
    try:
        with (folder / LOCK).open("rb") as file:
            asked_for = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked_for))[0] != fcntl.F_UNLCK
    except (OSError, struct.error):
        return False


def _link(runs: list[Run]) -> None:
    """Call each checkpoint by the training in the tree that made it, and give that the newest measurement of each kind."""
    trained = [run for run in runs if run.command == "train"]
    for run in sorted((run for run in runs if run.ckpt and run.command != "train"), key=lambda run: run.started):
        training = next((of for of in trained if _is_of(Path(run.ckpt).expanduser(), of.path)), None)
        if training is None:
            continue
        run.settings["ckpt"] = training.name
        if run.finished and run.command in MEASURES:
            if run.command in training.linked:
                training.several.add(run.command)
            training.linked[run.command] = run


def _is_of(ckpt: Path, training: Path) -> bool:
    """Whether a checkpoint is one of a training's; a relative path was seen from a folder that is not known any more."""
    if training in ckpt.resolve().parents or training == ckpt.resolve():
        return True
    whole = training / "checkpoints" / ckpt.name
    return not ckpt.is_absolute() and len(ckpt.parts) > 2 and whole.parts[-len(ckpt.parts) :] == ckpt.parts
