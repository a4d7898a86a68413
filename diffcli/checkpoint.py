"""A checkpoint carries its config.  Reading one runs no code: tensors and plain containers, classes of diffcli only."""

import importlib
import inspect
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.errors import CheckpointError, UsageError

FORMAT = 1


def newest(root: str | Path = "outputs") -> Path:
    """last.ckpt of the newest training run under root.  Raises UsageError if there is none."""
    found = sorted(Path(root).glob("**/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UsageError(
            f"no training run under {root}/, and no ckpt given", "diffcli train, or ckpt=PATH, or network=exact data=mixture"
        )
    return found[-1]


def read(path: str | Path) -> dict:
    """The contents of a checkpoint, checked: whole (CRC), plain data, dense finite tensors, this program's keys.

    Raises UsageError if there is no such file, CheckpointError (one sentence) for anything else that is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no checkpoint {path}", "diffcli train makes one, under outputs/")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, not a checkpoint", f"ckpt={path}/checkpoints/last.ckpt")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no checkpoint of diffcli, or it was cut short")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise CheckpointError(f"{path} is damaged (checksum of {bad})")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged files fail in many ways inside zipfile and torch
        text = str(error)
        if "GLOBAL" in text or "Unsupported" in text:
            raise CheckpointError(f"{path} is refused: it holds Python objects, not only weights, and may run code") from None
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None
    if not isinstance(content, dict) or not {"format", "config", "state_dict", "ema", "shape"} <= content.keys():
        raise CheckpointError(f"{path} is no checkpoint of diffcli")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}, this version of diffcli reads {FORMAT}")
    for group in ("state_dict", "ema"):
        _check_tensors(content[group], group, path)
    return content


def _check_tensors(tensors, group: str, path: Path) -> None:
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} has no weights in its {group}")
    for name, value in tensors.items():
        if not torch.is_tensor(value) or value.layout is not torch.strided:
            raise CheckpointError(f"{path} is refused: {name} in its {group} is no dense tensor")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} in its {group} is not finite")


def check_node(node, bases: tuple[type, ...], trust: str | None, where: str) -> None:
    """Refuse a config that could do more than build a model: it names classes of diffcli (or of `trust`), nothing else.

    A class counts as diffcli's by the module that defines it, so that nothing re-exported gets through; it must also be one
    of `bases`.  Raises CheckpointError with one sentence.
    """
    for path, value in _walk(node, where):
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(f"the checkpoint is refused: {path} holds an interpolation")
        if isinstance(value, dict):
            odd = [k for k in value if not isinstance(k, str) or (k.startswith("_") and k != "_target_")]
            if odd:
                raise CheckpointError(f"the checkpoint is refused: {path} has the key {odd[0]}")
            if "_target_" in value:
                _check_target(value["_target_"], bases, trust, path)


def _walk(node, path: str) -> Iterator[tuple[str, object]]:
    yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _walk(value, f"{path}.{key}")


def _check_target(target, bases: tuple[type, ...], trust: str | None, path: str) -> None:
    package = str(target).partition(".")[0]
    if package != "diffcli" and (trust is None or package != trust):
        raise CheckpointError(
            f"the checkpoint is refused: {path} is {target!r}, which is not part of diffcli",
            f"if you trust that package, trust={package}",
        )
    module, _, name = str(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise CheckpointError(f"the checkpoint names {target!r} ({path}), which cannot be imported") from None
    if package == trust:
        return
    if not inspect.isclass(found) or not found.__module__.startswith("diffcli.") or not issubclass(found, bases):
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is not a model part of diffcli")


def build_denoiser(node: dict, trust: str | None = None) -> Denoiser:
    """The denoiser that a checked node describes, with fresh weights."""
    check_node(node, (nn.Module,), trust, "denoiser")
    try:
        return instantiate(node, _convert_="all")
    except Exception as error:  # noqa: BLE001 - whatever a forged or foreign config makes a constructor raise
        cause = error.__cause__ or error
        raise CheckpointError(f"the checkpoint's model cannot be built: {str(cause).splitlines()[0]}") from error


def load_weights(denoiser: nn.Module, content: dict, weights: str, path: Path) -> None:
    """Put the raw or averaged weights of a checkpoint into the denoiser; every key and shape must agree.

    Raises CheckpointError naming the first difference.
    """
    state = {k.removeprefix("denoiser."): v for k, v in content["state_dict"].items() if k.startswith("denoiser.")}
    if weights == "ema":
        state |= {k.removeprefix("denoiser."): v for k, v in content["ema"].items()}
    own = denoiser.state_dict()
    odd = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
    if odd:
        k = odd[0]
        what = "is missing" if k not in state else "is unknown" if k not in own else f"has shape {tuple(state[k].shape)}"
        raise CheckpointError(f"{path} does not fit its own config: {k} {what} ({len(odd)} differences in all)")
    denoiser.load_state_dict(state)


def load_denoiser(path: str | Path, weights: str = "ema", trust: str | None = None) -> Denoiser:
    """The trained denoiser of a checkpoint, ready to sample from: what a program that uses diffcli as a library calls."""
    content = read(path)
    denoiser = build_denoiser(content["config"]["denoiser"], trust)
    load_weights(denoiser, content, weights, Path(path))
    return denoiser.eval().requires_grad_(False)
