"""The folder of one run: where it is, what it holds, and the record run.json."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import datetime
from importlib import metadata
from pathlib import Path

from diffcli.errors import DiffcliError, UsageError

# what a run may have written; nothing else is ever removed
OWN = (
    "run.json",
    "config.yaml",
    "metrics.csv",
    "metrics.json",
    "error.log",
    "checkpoints",
    "samples",
    "samples.npy",
    "source.npy",
    "nll.csv",
)
OWN += ("grid.png", "trajectory.png", "trajectory.gif", "comparison.png", "denoised.png", "wandb", "tensorboard")
OWN += (
    "model.json",
    "model.safetensors",
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "scheduler_config.json",
)
OWN += ("explain.json", "coefficients.csv", "clocks.csv", "coefficients.png", "forward.png", "scores.png", "energy.png")
OWN += ("marginals.png", "flow.png", "compare.csv", "compare.md", "compare.png", "bound.csv", "bound.png")
OWN += ("latents.npy", "inputs.npy", "reconstructions.npy", "reconstructions.png", "translation.png")
OWN += ("frames.npy", "strip.png", "interpolation.gif", "path.png", "frames")
OWN += ("measured.npy", "inverse.png", "labels.csv", "vectors.npy")
OWN += ("diagnosis.html", "diagnosis.json", "card.json", "card.md", "card.png", "neighbours.png")


class RunFolder:
    """`path`, made new, with a record that is complete from the start and brought up to date at the end."""

    def __init__(self, path: Path, command: str, config: dict, made: list[Path] | tuple = ()):
        self.path, self.begun = path, time.monotonic()
        self.made = made  # folders that were not there before, innermost first
        self.record = {
            "command": command,
            "status": "running",
            "config": config,
            "seed": config["seed"],
            "git": _git(),
            "versions": _versions(),
            "hardware": _hardware(),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "steps": None,
            "nfe": None,
            "seconds": None,
            "results": {},
        }

    def write(self, status: str, **entries) -> None:
        """Bring run.json up to date; the file is always whole."""
        self.record |= {"status": status, "seconds": round(time.monotonic() - self.begun, 3), **entries}
        write_text(self.path / "run.json", json.dumps(self.record, indent=2, default=str, allow_nan=True) + "\n")

    def discard(self) -> None:
        """Leave nothing of a run that did not start: its own files, and the folders made for it."""
        _remove_own(self.path)
        for path in self.made:
            if any(path.iterdir()):
                return
            path.rmdir()


def _remove_own(path: Path) -> None:
    for name in OWN:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file such that its name holds either the old or the new content, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def choose(command: str, config: dict) -> Path:
    """The folder of this run: `out`, else a new one under outputs/.  Raises UsageError if `out` holds another run."""
    from hydra.core.hydra_config import HydraConfig

    sweep = (
        HydraConfig.initialized() and HydraConfig.get().mode is not None and HydraConfig.get().mode.name == "MULTIRUN"
    )
    if config["out"] is not None:
        path = Path(config["out"]).expanduser()
        path = path / str(HydraConfig.get().job.num) if sweep else path
    elif sweep:
        path = Path(HydraConfig.get().runtime.output_dir)
    else:
        path = Path("outputs") / command / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    if path.exists() and not path.is_dir():
        raise UsageError(f"out={path} is a file, not a folder")
    ckpt = config.get("ckpt")
    if ckpt is not None and Path(ckpt).resolve().is_relative_to(path.resolve()) and (path / "run.json").exists():
        raise UsageError(f"out={path} is the run that ckpt={ckpt} belongs to, which would be lost", "another out=DIR")
    if (path / "run.json").exists() and not config["overwrite"]:
        more = " or resume=auto goes on with it; overwrite=true replaces it" if command == "train" else ""
        raise UsageError(f"out={path} already holds a run", f"another out=DIR{more or ', or overwrite=true'}")
    return path


def create(path: Path, command: str, config: dict, keep: bool = False) -> RunFolder:
    """Make the folder (emptied of an earlier run's own files unless `keep`) and its run.json.

    Raises DiffcliError (exit 1) if it cannot be written.
    """
    try:
        made = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        if (path / "run.json").exists() and not keep:
            _remove_own(path)
        folder = RunFolder(path, command, config, made)
        folder.write("running")
    except OSError as error:
        raise DiffcliError(f"cannot write to {path} ({error.strerror})") from error
    return folder


def _git() -> str | None:
    """The commit of the checkout that the program runs from, with + where it has changes; None outside one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", here, *args], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _versions() -> dict[str, str]:
    names = ("diffcli", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from diffcli import __version__

            found[name] = __version__
    return found


def _hardware() -> dict[str, str | int | list[str]]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def say(text: str) -> None:
    """A line on screen, in order with what else is printed there."""
    print(text, flush=True)
    sys.stdout.flush()
