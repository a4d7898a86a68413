"""What made a run: the commit of the program, versions, and the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def git() -> str | None:
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


def versions() -> dict[str, str]:
    """Of this program, of Python, and of the libraries that results depend on."""
    names = ("diffcli", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from diffcli import __version__

            found[name] = __version__
    return found


def hardware() -> dict[str, str | int | list[str]]:
    """The machine, its cores, the threads in use and its GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}
