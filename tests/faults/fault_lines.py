"""Short command lines of every command, and what a folder must look like after a fault."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffcli.commands.folder_lock import NAME
from diffcli.writing import TEMPORARY

SMALL = ["data=moons", "network=mlp", "network.width=8", "network.blocks=1", "data.n=100", "preview.every=0"]
SAMPLE = ["sample", "network=exact", "n=4", "steps=1"]
EXACT = {  # commands that need no checkpoint
    "sample": SAMPLE[1:],
    "nll": ["network=exact", "n=3", "likelihood.tol=0.1", "likelihood.divergence=exact"],
    "evaluate": ["network=exact", "n=32", "steps=1", "repeats=2", "data.n=64", "compared=32"],
    "compare": ["network=exact", "n=8", "endpoints=4", "nfe=[3]", "samplers=[ddim]"],
    "explain": ["network=exact", "n=50"],
    "encode": ["network=exact", "n=4", "steps=2"],
    "interpolate": ["network=exact", "a=seed:1", "b=seed:2", "steps=2", "frames=3"],
    "diagnose": ["network=exact", "n=32", "data.n=200", "checks=[calibration]", "times=2"],
}


def check_whole(folder: Path) -> None:
    """Nothing temporary, and whatever has a final name can be read to its end."""
    assert not list(folder.rglob(TEMPORARY))
    assert not (folder / NAME).exists()
    for path in folder.rglob("*"):
        if path.parent.name == "partial":
            continue  # rows so far, for a run that goes on
        if path.suffix == ".npy":
            np.load(path)
        elif path.suffix in (".png", ".gif"):
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
