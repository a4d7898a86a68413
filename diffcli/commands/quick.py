"""The networks of a command in the form that evaluates fastest: `compile=` and `precision=`."""

import os
import shutil

from torch import nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.errors import UsageError
from diffcli.networks.quick import Quick


def quicken(denoiser: Denoiser, config: dict) -> None:
    """Compile the networks of a denoiser and of what is wrapped around it, and let them calculate in bf16, where `config` says so.

    Raises UsageError where there is no network, or nothing that compiles.
    """
    compiled, bf16 = config["compile"], config.get("precision") == "bf16"
    if not compiled and not bf16:
        return
    key = "compile=true" if compiled else "precision=bf16"
    asked = [
        m for m in denoiser.modules() if isinstance(m, Denoiser) and isinstance(getattr(m, "network", None), nn.Module)
    ]
    if not asked:
        raise UsageError(f"{key}: this model has no network, only formulas", f"{key} left out")
    if compiled and any(m.double_backward for m in asked):
        raise UsageError(
            "compile=true cannot differentiate a network at each evaluation, as this model does", "compile=false"
        )
    if bf16 and config["dtype"] != "float32":
        raise UsageError(f"precision=bf16 goes with dtype=float32, got {config['dtype']}", "precision=full")
    if compiled and not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"):
        raise UsageError("compile=true writes C++ and finds no compiler for it", "compile=false, or CXX=/path/to/g++")
    for part in asked:
        part.network = Quick(part.network, compiled, bf16)
