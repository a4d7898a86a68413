"""A checkpoint carries its config.  Reading one runs no code: tensors and plain containers, classes of diffcli only."""

import importlib
import inspect
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import nn

from diffcli.data.base import Data
from diffcli.diffusion.classifier import Classifier
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.sde import SDE
from diffcli.errors import CheckpointError, UsageError

FORMAT = 1
PARTS = ("diffcli.data.", "diffcli.diffusion.", "diffcli.networks.")  # the modules a checkpoint's config may name
CONDITIONS = ("none", "label", "vector", "image")
DEPTH, SIZE = 20, 100_000  # of such a config; a forged one can contain itself


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
    """Write to a temporary file in the same folder, flush it to the disk, rename it: a final name has a whole checkpoint."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path, part: str | None = "denoiser") -> dict:
    """The contents of a checkpoint, checked: whole (CRC), plain data, dense finite tensors, this program's keys.

    part: the one of MODELS that it must hold; None for any.
    Raises UsageError if there is no such file, CheckpointError (one sentence) for anything else that is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no checkpoint {path}", "diffcli train makes one, under outputs/")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint", f"ckpt={path}/checkpoints/last.ckpt")
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no checkpoint of diffcli, or it was cut short")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise CheckpointError(f"{path} is damaged (checksum of {bad})")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path} is refused: it holds Python objects, which may run code") from None
    except Exception as error:  # noqa: BLE001 - damaged files fail in many ways inside zipfile and torch
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None
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
    for group in ("state_dict", "ema"):
        _check_tensors(content[group], group, path)
    return content


def _check_tensors(tensors, group: str, path: Path) -> None:
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} has no weights in its {group}")
    for name, value in tensors.items():
        if not isinstance(name, str) or not _is_dense(value):
            raise CheckpointError(f"{path} is refused: {name} in its {group} is no dense tensor")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} in its {group} is not finite")


def _is_dense(value) -> bool:
    """A tensor whose elements are all there: not sparse, quantised or without storage, none stored once for many."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
        return False
    return value.device.type == "cpu" and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def check_node(node, bases: tuple[type, ...], trust: str | None, where: str) -> None:
    """Refuse a config that could do more than build a model: it names classes of diffcli (or of `trust`), nothing else.

    A class counts as diffcli's by the module that defines it, so that nothing re-exported gets through; it must also be
    one of `bases`.  Of `trust`, functions will do.  Raises CheckpointError with one sentence.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise CheckpointError(f"the checkpoint is refused: its {where} names no class")
    for path, value in _walk(node, where):
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(f"the checkpoint is refused: {path} holds an interpolation")
        if value is not None and type(value) not in (dict, list, str, int, float, bool):
            raise CheckpointError(f"the checkpoint is refused: {path} is a {type(value).__name__}, not plain data")
        if isinstance(value, dict):
            odd = [
                k for k in value if not isinstance(k, str) or not k.isprintable() or (k[:1] == "_" and k != "_target_")
            ]
            if odd:
                raise CheckpointError(f"the checkpoint is refused: {path} has the key {odd[0]!r}")
            if "_target_" in value:
                _check_target(value["_target_"], bases, trust, path)


def _walk(node, where: str) -> Iterator[tuple[str, object]]:
    todo, seen = [(where, node, 0)], 0
    while todo:
        path, value, depth = todo.pop()
        seen += 1
        if depth > DEPTH or seen > SIZE:
            raise CheckpointError(f"the checkpoint is refused: its {where} is too large or nested too deeply")
        yield path, value
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        todo += [(f"{path}.{key}", item, depth + 1) for key, item in items]


def _check_target(target, bases: tuple[type, ...], trust: str | None, path: str) -> None:
    if not isinstance(target, str) or not all(word.isidentifier() for word in target.split(".")):
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is no name of a class")
    package = target.partition(".")[0]
    if package not in ("diffcli", trust):
        raise CheckpointError(
            f"the checkpoint is refused: {path} is {target!r}, which is not part of diffcli",
            f"if you trust that package, trust={package}",
        )
    foreign = package != "diffcli"
    if not foreign and not target.startswith(PARTS):
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is not a model part of diffcli")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint names {target!r} ({path}), which cannot be imported ({error})") from None
    home = str(getattr(found, "__module__", "")).partition(".")[0]  # where it is defined, not where it was found
    if home != package or not (foreign or (inspect.isclass(found) and issubclass(found, bases))):
        kind = f"defined in {package}" if foreign else "a model part of diffcli"
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is not {kind}")


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


def build_denoiser(node: dict, trust: str | None = None) -> Denoiser:
    """The denoiser that a node of a checkpoint describes, with fresh weights.  Raises CheckpointError."""
    denoiser = _built(node, (nn.Module,), trust, "denoiser", "model")
    if not isinstance(denoiser, Denoiser) or not isinstance(denoiser.sde, SDE):
        raise CheckpointError(f"the checkpoint is refused: its {node['_target_']} is no model with an SDE")
    return denoiser


def build_classifier(content: dict, trust: str | None = None) -> Classifier:
    """The classifier that the contents of a checkpoint describe, with fresh weights, its data node and transform.

    Raises CheckpointError.
    """
    config = content["config"]
    classifier = _built(config["classifier"], (nn.Module,), trust, "classifier", "classifier")
    if not isinstance(classifier, Classifier) or list(classifier.shape) != content["shape"]:
        raise CheckpointError(
            f"the checkpoint is refused: its {config['classifier']['_target_']} is no classifier of its data"
        )
    if classifier.sde is not None and not isinstance(classifier.sde, SDE):
        raise CheckpointError("the checkpoint is refused: its classifier's sde is no SDE")
    classifier.data = config["data"]
    classifier.transform = _built(config["data"], (Data,), trust, "data", "data set").transform
    return classifier


def _built(node: dict, bases: tuple[type, ...], trust: str | None, where: str, what: str):
    check_node(node, bases, trust, where)
    try:
        return instantiate(node, _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise CheckpointError(f"the checkpoint's {what} cannot be built: {reason}") from error


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
    denoiser = build_denoiser(content["config"]["denoiser"], trust)
    load_weights(denoiser, content, weights, Path(path))
    return denoiser.eval().requires_grad_(False)


def load_classifier(path: str | Path, weights: str = "ema", trust: str | None = None) -> Classifier:
    """The trained classifier of a checkpoint, ready to be asked; `transform.encode` takes source units to what it reads."""
    content = read(path, "classifier")
    classifier = build_classifier(content, trust)
    load_weights(classifier, content, weights, Path(path), "classifier")
    return classifier.eval().requires_grad_(False)
