"""A checkpoint carries its config.  Reading one runs no code: tensors and plain containers, classes of diffcli only."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch
from torch import nn

from diffcli.data.base import Data
from diffcli.diffusion.classifier import Classifier
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.sde import SDE
from diffcli.errors import CheckpointError, UsageError
from diffcli.untrusted.archive import read_archive
from diffcli.untrusted.config import (  # noqa: F401 - check_node: for those who build a data set
    built,
    check_node,
    check_plain,
)
from diffcli.untrusted.tensors import check_content, check_named
from diffcli.untrusted.tuned import check_tuned
from diffcli.writing import flushed, unwritten

FORMAT = 1
CONDITIONS = ("none", "label", "vector", "image")


# what a checkpoint's config can hold a model as, and what that is called
MODELS = {"denoiser": "a model of scores", "classifier": "a classifier (task=classifier)"}
USES = {
    "denoiser": "ckpt= of sample, nll, evaluate, …; diffcli train task=classifier makes a classifier",
    "classifier": "features=classifier features.ckpt=PATH of evaluate; diffcli train makes a model of scores",
}


def newest(root: str | Path = "outputs") -> Path:
    """last.ckpt of the newest training run under root that is no classifier's.  Raises UsageError if there is none."""
    found = sorted(Path(root).glob("**/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
    score = next((path for path in found if not _is_classifiers(path)), None)
    if score is None:
        what = "training run" if not found else "training run of a score, only classifiers,"
        raise UsageError(
            f"no {what} under {root}/, and no ckpt given",
            "diffcli train, or ckpt=PATH, or network=exact data=mixture",
        )
    return score


def _is_classifiers(path: Path) -> bool:
    """Whether the record of the run that a checkpoint lies in is a classifier's; one that cannot be read is not."""
    try:
        config = json.loads((path.parent.parent / "run.json").read_text())["config"]
        return "classifier" in config
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(content: dict, path: str | Path) -> None:
    """Write to a temporary file in the same folder, flush it to the disk, rename it: a final name has a whole checkpoint.

    Raises DiffcliError where it cannot be written; what had that name is still there then.
    """
    path = Path(path).resolve()
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: the folder of a run that vanished does not come back
        with flushed(path) as file:
            torch.save(content, file)
        _flush(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError when it is closed
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise unwritten(path, cause) from error


def _flush(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system lets them be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | Path, part: str | None = "denoiser") -> dict:
    """The contents of a checkpoint, checked: whole (CRC), plain data, dense finite tensors, this program's keys.

    part: the one of MODELS that it must hold; None for any.
    Raises UsageError if there is no such file, CheckpointError (one sentence) for anything else that is wrong with it.
    """
    path = Path(path)
    content = read_archive(path)
    if not isinstance(content, dict) or not {"format", "config", "state_dict", "ema", "shape"} <= content.keys():
        raise CheckpointError(f"{path} is no checkpoint of diffcli")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise CheckpointError(f"{path} has another format, this version of diffcli reads {FORMAT}")
    config, shape = content["config"], content["shape"]
    held = [name for name in MODELS if isinstance(config, dict) and isinstance(config.get(name), dict)]
    if len(held) != 1 or not isinstance(config.get("data"), dict):
        raise CheckpointError(f"{path} has no model and data in its config")
    if part not in (None, *held):
        raise CheckpointError(f"{path} is {MODELS[held[0]]}, not {MODELS[part]}", USES[held[0]])
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise CheckpointError(f"{path} has no shape of items")
    check_plain(config, "config")
    for group in ("state_dict", "ema"):
        check_named(content[group], group, path)
    for key, value in content.items():
        if key not in ("config", "state_dict", "ema"):
            check_content(value, key, path)
    check_tuned(content.get("tuned", []), path)
    return content


def fingerprint(content: dict) -> str:
    """A hex SHA-256 of a checkpoint's model: its config, shape and weights, raw and averaged; not of what was tuned to it."""
    found = hashlib.sha256(repr((content["config"], content["shape"])).encode())
    for group in ("state_dict", "ema"):
        for name, value in sorted(content[group].items()):
            found.update(f"{group}.{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def own_data(config: dict, group: str = "data") -> dict | None:
    """The node of a checkpoint's data, or of its source; whatever it says, nothing is fetched unless the user asks anew."""
    node = config.get(group)
    return {k: False if k == "download" else v for k, v in node.items()} if isinstance(node, dict) else node


def conditioning(config: dict, path: Path) -> tuple[str, list[str], float, int]:
    """What a model may be told of an item (none, label, vector, image), the classes' names, `drop`, and a vector's dimension.

    A checkpoint from before there were conditions has none.  Raises CheckpointError for values of another kind.
    """
    condition, names, drop = (config.get(key) for key in ("condition", "class_names", "drop"))
    condition, names, drop = condition or "none", names or [], drop or 0.0
    network = config["denoiser"].get("network")
    network = network if isinstance(network, dict) else {}
    vector = network.get("vector", 0) if condition == "vector" else 0
    there = condition in CONDITIONS and type(vector) is int and (vector > 0) == (condition == "vector")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    fits = bool(names) == (condition == "label") and len(names) in (0, network.get("classes") or len(names))
    if not (there and named and fits and type(drop) in (int, float) and 0 <= drop <= 1):
        raise CheckpointError(f"{path} does not say what its model is conditioned on")
    return condition, names, float(drop), vector


def build_denoiser(node: dict, trust: str | None = None, weights: dict | None = None) -> Denoiser:
    """The denoiser that a node of a checkpoint describes, with fresh weights, no more than its `weights`.

    Raises CheckpointError.
    """
    denoiser = built(node, (nn.Module,), trust, "denoiser", "model", weights)
    if not isinstance(denoiser, Denoiser) or not isinstance(denoiser.sde, SDE):
        raise CheckpointError(f"the checkpoint is refused: its {node['_target_']} is no model with an SDE")
    return denoiser


def build_classifier(content: dict, trust: str | None = None) -> Classifier:
    """The classifier that the contents of a checkpoint describe, with fresh weights, its data node and transform.

    Raises CheckpointError.
    """
    config = content["config"]
    classifier = built(config["classifier"], (nn.Module,), trust, "classifier", "classifier", content["state_dict"])
    if not isinstance(classifier, Classifier) or list(classifier.shape) != content["shape"]:
        raise CheckpointError(
            f"the checkpoint is refused: its {config['classifier']['_target_']} is no classifier of its data"
        )
    if classifier.sde is not None and not isinstance(classifier.sde, SDE):
        raise CheckpointError("the checkpoint is refused: its classifier's sde is no SDE")
    classifier.data = config["data"]
    classifier.transform = built(config["data"], (Data,), trust, "data", "data set").transform
    return classifier


def load_weights(model: nn.Module, content: dict, weights: str, path: Path, part: str = "denoiser") -> None:
    """Put the raw or averaged weights of a checkpoint into the denoiser, or the classifier; every key and shape must agree.

    Raises CheckpointError naming the first difference.
    """
    groups = ("state_dict", "ema") if weights == "ema" else ("state_dict",)
    state = {
        name.removeprefix(f"{part}."): value
        for group in groups
        for name, value in content[group].items()
        if name.startswith(f"{part}.")
    }
    own = model.state_dict()
    odd = sorted(own.keys() ^ state.keys()) or [k for k in own if _form(own[k]) != _form(state[k])]
    if odd:
        k = odd[0]
        what = "is unknown" if k not in own else f"has {_form(state[k])}" if k in state else "is missing"
        raise CheckpointError(f"{path} does not fit its own config: {k} {what} ({len(odd)} differences in all)")
    model.load_state_dict(state)


def _form(value: torch.Tensor) -> str:
    return f"shape {tuple(value.shape)}" + ("" if value.is_floating_point() else f" of {value.dtype}")


def load_denoiser(path: str | Path, weights: str = "ema", trust: str | None = None) -> Denoiser:
    """The trained denoiser of a checkpoint, ready to sample from; for programs that use diffcli as a library."""
    content = read(path)
    denoiser = build_denoiser(content["config"]["denoiser"], trust, content["state_dict"])
    load_weights(denoiser, content, weights, Path(path))
    return denoiser.eval().requires_grad_(False)


def load_classifier(path: str | Path, weights: str = "ema", trust: str | None = None) -> Classifier:
    """The trained classifier of a checkpoint, ready to be asked; `transform.encode` takes source units to what it reads."""
    content = read(path, "classifier")
    classifier = build_classifier(content, trust)
    load_weights(classifier, content, weights, Path(path), "classifier")
    return classifier.eval().requires_grad_(False)
