"""`diffcli import`: a model in another program's files, or exported, becomes a run with a checkpoint."""

from pathlib import Path

from diffcli import checkpoint
from diffcli.commands.build import build
from diffcli.commands.common import plain, recorded, typed
from diffcli.commands.model import parameters
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.settings import check_settings
from diffcli.data.base import Data
from diffcli.diffusion.denoiser import Denoiser
from diffcli.errors import UsageError
from diffcli.interchange import read_folder


def run(cfg) -> int:
    source = Path(cfg.path).expanduser()
    config = plain(cfg)
    check_settings(config, {"data", "network"})
    if typed("network"):
        raise UsageError("the network is the model's and cannot be chosen", "leave network= out")
    content, denoiser, notes = read_model(source, config)
    path = choose("import", config)
    if source.resolve().is_relative_to(path.resolve()):
        raise UsageError(f"out={path} is where the model comes from", "another out=DIR")
    for note in notes:
        say(note)
    if config["dry_run"]:
        say(f"would import {parameters(denoiser):,} parameters from {source} to {path}")
        return 0
    folder = create(path, "import", config)
    with recorded(folder):
        checkpoint.write(content | {"global_step": 0}, path / "checkpoints" / "last.ckpt")
        results = {"parameters": parameters(denoiser), "shape": content["shape"], "notes": notes}
        folder.write("finished", steps=0, results=results)
    say(f"{parameters(denoiser):,} parameters, items of shape {tuple(content['shape'])}, from {source}")
    say(f"  {path / 'checkpoints' / 'last.ckpt'}")
    return 0


def read_model(source: Path, config: dict) -> tuple[dict, Denoiser, list[str]]:
    """The contents of the checkpoint to write, its denoiser with the weights, and what to say of it; nothing is written.

    Raises UsageError where something is missing or does not fit, CheckpointError where something is damaged or refused.
    """
    content = read_folder(source)
    notes = content.pop("notes", [])
    _settle(content, config, source)
    checkpoint.conditioning(content["config"], source)
    denoiser = checkpoint.build_denoiser(content["config"]["denoiser"], config["trust"], content["state_dict"])
    checkpoint.load_weights(denoiser, content, "raw", source)
    content["state_dict"] = {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()}
    return content, denoiser, notes


def _settle(content: dict, config: dict, source: Path) -> None:
    """Decide the data and the shape: the user's, else the folder's own, else none of a shape.  Raises UsageError."""
    parts, shape = content["config"], content["shape"]
    node = config.get("data") or parts["data"] or {"_target_": "diffcli.data.blank.Blank", "shape": shape}
    if node["_target_"] == "diffcli.data.blank.Blank" and node.get("shape") is None:
        node = node | {"shape": shape}
        if shape is None:
            raise UsageError(
                f"{source} does not say the size of its images (sample_size)", "data=blank data.shape=[3,32,32]"
            )
    if not config.get("data"):
        checkpoint.check_node(node, (Data,), config["trust"], "data")
    data = build(node, "data")
    # data of a file read it for their shape, and a folder from elsewhere may name any file
    reads = not config.get("data") and node.get("file") is not None
    found = shape if reads and shape is not None else list(data.shape)
    if shape is not None and found != shape:
        raise UsageError(f"the data has items of shape {tuple(found)}, the model takes {tuple(shape)}", "data=blank")
    parts["data"], content["shape"] = node, found
    network = parts["denoiser"].get("network")
    if isinstance(network, dict) and network.get("shape", 0) is None:
        network["shape"] = found
