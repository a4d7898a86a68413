"""What `diffcli train` does with a model that is fitted in closed form: one fit in place of the trainer, the same files."""

from pathlib import Path

import torch

from diffcli import checkpoint
from diffcli.commands.common import typed
from diffcli.commands.run_folder import RunFolder, say
from diffcli.data.pictures import picture
from diffcli.diffusion.fitted import Fitted
from diffcli.diffusion.loss import TrainingSet
from diffcli.errors import UsageError
from diffcli.sampling import draw_samples

UNUSED = ("source", "loss", "prediction", "optim", "coupling", "ema", "compile", "checkpoint", "trainer", "logger")
UNUSED += (
    "cuda_graphs",
    "channels_last",
    "workers",
    "resident",
    "augment",
    "dequantize",
    "ckpt",
    "devices",
    "batch_size",
    "condition",
    "drop",
)


def check_fit(name: str, config: dict) -> None:
    """Refuse what was typed for a training that a fit does not have.  Raises UsageError."""
    for key in UNUSED:
        if typed(f"{key}=") or typed(f"{key}."):
            raise UsageError(
                f"network={name} is fitted in closed form and does not use {key}=",
                f"leave {key} out, or network=mlp|unet",
            )
    if config["resume"] != "never":
        raise UsageError(f"network={name} is fitted at once: there is nothing to resume", "overwrite=true fits it anew")


def fit_at_once(denoiser: Fitted, data: TrainingSet, parts, path: Path, folder: RunFolder) -> int:
    """Fit, write checkpoints/last.ckpt and a preview of a process, and keep the record.  Returns the exit code."""
    config = parts.config
    try:
        found = denoiser.fit(data, config["seed"])
    except ValueError as error:
        raise UsageError(f"network: {error}") from error
    content = {
        "format": checkpoint.FORMAT,
        "config": config,
        "shape": list(data.shape),
        "global_step": 0,
        "state_dict": {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()},
        "ema": {},  # of weights, which it has none of
    }
    checkpoint.write(content, path / "checkpoints" / "last.ckpt")
    files = [path / "checkpoints" / "last.ckpt"]
    if config["preview"]["every"] and denoiser.sde.is_process:
        files.append(_preview(denoiser, parts, path / "samples" / "step0000000.png"))
    folder.write("finished", steps=0, results=found | {"parameters": 0})
    say(f"fitted to {found['items']:,} items, {folder.record['seconds']:.1f} s")
    for file in files:
        say(f"  {file}")
    return 0


@torch.no_grad()
def _preview(denoiser: Fitted, parts, path: Path) -> Path:
    preview, seed = parts.config["preview"], parts.config["seed"]
    times, n = parts.grid(denoiser.sde, preview["steps"]), preview["n"]
    drawn = draw_samples(denoiser, parts.sampler, times, parts.data.shape, n, seed, n)
    x = torch.cat([batch.x for batch in drawn]).float()
    path.parent.mkdir(exist_ok=True)
    picture(parts.data.transform.decode(x).numpy(), path, parts.data)
    return path
