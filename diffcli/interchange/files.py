"""Reading and writing the files: nothing in them is run, what is damaged is refused, what is written is whole."""

import json
from pathlib import Path

import torch
from torch import Tensor

from diffcli.errors import CheckpointError, UsageError
from diffcli.writing import write_text

OWN_CONFIG, OWN_WEIGHTS = "model.json", "model.safetensors"
UNET_CONFIG, UNET_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = "scheduler_config.json"
MODEL_FILES = (OWN_CONFIG, OWN_WEIGHTS, UNET_CONFIG, UNET_WEIGHTS, SCHEDULER_CONFIG)  # what an export may write
LARGEST = 2**26  # bytes of a JSON file


def read_json(path: Path) -> dict:
    """The object in a JSON file.  Raises UsageError if there is no such file, CheckpointError if it cannot be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise CheckpointError(f"{path} is too large for a config")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):  # ValueError: of JSON and of UTF-8
        raise CheckpointError(f"{path} is no JSON, or it was cut short") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.  Raises UsageError if there is none, CheckpointError if one is damaged or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        pickled = [p.name for p in sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt"))]
        more = f" ({pickled[0]} is not read: Python objects may run code)" if pickled else ""
        raise UsageError(f"{path.parent} has no {path.name}{more}", "save_pretrained(DIR, safe_serialization=True)")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({str(error).splitlines()[0]})") from None
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} is not finite")
    return tensors


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file; numbers come back as they are, to the last bit."""
    write_text(path, json.dumps(content, indent=2) + "\n")
