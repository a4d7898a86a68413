"""This program's own pair of files: model.safetensors with the weights, model.json with what builds the model."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from diffcli.checkpoint import FORMAT
from diffcli.errors import CheckpointError
from diffcli.interchange.files import OWN_CONFIG, OWN_WEIGHTS, read_json, read_tensors, write_json
from diffcli.untrusted.tensors import check_content
from diffcli.untrusted.tuned import TENSORS, check_tuned
from diffcli.writing import whole

KIND = "diffcli model"


def write(
    folder: Path, denoiser: nn.Module, config: dict, shape: list[int], weights: str, tuned: list[dict] | tuple = ()
) -> list[Path]:
    """Write both files; config holds the nodes of the denoiser and the data, tuned what a checkpoint has of that name.

    The weights stand first, the config once they are.
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in denoiser.state_dict().items()}
    with whole(folder / OWN_WEIGHTS) as file:
        try:
            save_file(state, file, metadata={"format": "pt"})
        except SafetensorError as error:  # its own for a full disk
            raise OSError(str(error)) from error
    content = {
        "kind": KIND,
        "format": FORMAT,
        "weights": weights,
        "shape": shape,
        "sha256": _digest(folder / OWN_WEIGHTS),
    }
    lists = [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in entry.items()} for entry in tuned]
    write_json(folder / OWN_CONFIG, content | {"config": config} | ({"tuned": lists} if lists else {}))
    return [folder / OWN_WEIGHTS, folder / OWN_CONFIG]


def read(folder: Path) -> dict:
    """The contents of a checkpoint, from both files; its config is not checked yet.

    Raises UsageError where a file is missing, CheckpointError where one is damaged or of another program.
    """
    path = folder / OWN_CONFIG
    content = read_json(path)
    if content.get("kind") != KIND or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of another format than {KIND} {FORMAT}")
    config, shape = content.get("config"), content.get("shape")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in ("denoiser", "data")):
        raise CheckpointError(f"{path} has no model and data in its config")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise CheckpointError(f"{path} has no shape of items")
    tensors = read_tensors(folder / OWN_WEIGHTS)
    if content.get("sha256") != _digest(folder / OWN_WEIGHTS):
        raise CheckpointError(f"{folder / OWN_WEIGHTS} is damaged, or not the one that {OWN_CONFIG} is of (checksum)")
    state = {f"denoiser.{name}": value for name, value in tensors.items()}
    parts = {part: config[part] for part in ("denoiser", "data")}
    parts |= {key: config[key] for key in ("condition", "class_names", "drop", "source") if config.get(key) is not None}
    found = {"format": FORMAT, "config": parts, "state_dict": state, "ema": {}, "shape": shape}
    return found | ({"tuned": _tuned(content["tuned"], path)} if content.get("tuned") else {})


def _tuned(lists, path: Path) -> list[dict]:
    """What was tuned, from its lists of numbers."""
    try:
        found = [{k: _tensor(v) if k in TENSORS else v for k, v in entry.items()} for entry in lists]
    except (TypeError, ValueError, AttributeError, RuntimeError):  # what torch makes of other lists
        raise CheckpointError(f"{path} is refused: its tuned is no list of what was tuned") from None
    check_content(found, "tuned", path)
    return check_tuned(found, path)


def _tensor(values) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float64)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
