"""Weights of feature networks from files: read without running code, and one sentence for every file that does not fit."""

import hashlib
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcli.errors import CheckpointError, UsageError
from diffcli.interchange.files import read_tensors


def read_weights(path: str | Path, setting: str = "features.weights") -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one of torch.save that holds tensors alone (a `state_dict` in it is taken).

    Raises UsageError where there is no such file, CheckpointError where it is damaged or could run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(f"{setting}={path}: there is no such file")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or holds Python objects, which may run code", "a .safetensors file"
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged files fail in many ways inside zipfile and torch
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds no weights by their names")
    bad = [name for name, value in found.items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{path}: {bad[0]} is not finite")
    return found


def put_weights(module: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Load weights into a module; every key and shape must agree.  Raises CheckpointError naming the first difference."""
    own = module.state_dict()
    odd = sorted(own.keys() ^ weights.keys()) or [k for k in own if own[k].shape != weights[k].shape]
    if odd:
        what = "is unknown" if odd[0] not in own else "has another shape" if odd[0] in weights else "is missing"
        raise CheckpointError(f"{path} is of another network: {odd[0]} {what} ({len(odd)} differences in all)")
    module.load_state_dict(weights)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_words(error: Exception) -> str:
    """What an error of a library says first, short enough for a sentence."""
    text = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
