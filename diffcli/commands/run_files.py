"""The files of one run, by name: what it may have written, and what it has come to."""

import shutil
from pathlib import Path

from diffcli.writing import TEMPORARY

# of an earlier run nothing else is ever removed
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
    "partial",
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
OWN += ("diagnosis.html", "diagnosis.json", "card.json", "card.md", "card.png", "neighbours.png", "tune.csv")
# what each run begins with
BEGINNING = ("run.json", "config.yaml", "metrics.csv", "error.log")


def results(path: Path) -> dict[Path, int]:
    """What a run has come to: its files but for those that each run begins with, and when each was written."""
    own = [path / name for name in OWN if name not in BEGINNING]
    files = [p for top in own for p in (top, *top.rglob("*")) if p.is_file() and not p.match(TEMPORARY)]
    return {p: p.stat().st_mtime_ns for p in files}


def remove_own(path: Path) -> None:
    """Remove what a run may have written, and nothing else."""
    for name in OWN:
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)
