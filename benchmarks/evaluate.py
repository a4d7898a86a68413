"""What the whole of `diffcli evaluate` takes beside the sampling, of 10,000 samples of MNIST's size, part by part.

    python benchmarks/evaluate.py CKPT DATA_ROOT [--classifier CKPT] [--quick]    # about 4 minutes on 2 cores; --quick 2

Two batches are drawn by the command as it comes (dpm2, 20 steps: 40 evaluations), which gives the time of a sample; all the
rest is measured on as many images that cost nothing to draw: training images with noise, through `samples=FILE`.  Each run is
a process of its own, start included: cold, with an empty cache, and warm, as every evaluation on the same data after the
first.  Prints a Markdown table: seconds of each part, and the share of the sampling in the whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCHES, BATCH = 2, 256
PARTS = {  # what is timed: (module, object in it, its name), and how it is shown
    ("diffcli.commands.evaluate", "load_model"): "loading the model",
    ("diffcli.commands.evaluation", "reference"): "statistics of the data",
    ("diffcli.metrics.measures", "TwoSample.__init__"): "two-sample distances among real items",
    ("diffcli.metrics.feature_measures", "FeatureMeasures.floor"): "the same figures of real items",
    ("diffcli.metrics.taken", "Taken.add"): "features and moments of the samples",
    ("diffcli.metrics.feature_measures", "FeatureMeasures.__call__"): "Fréchet, KID, precision … coverage",
    ("diffcli.metrics.measures", "TwoSample.__call__"): "two-sample distances of the samples",
    ("diffcli.commands.evaluate", "_memorisation"): "copies of training items",
    ("diffcli.explain.card_picture", "draw"): "picture of the card",
}
REST = "start, configuration, data, writing"
DRAWING = "drawing the samples"


def timed(seconds: dict[str, float], label: str, call):
    """The call, whose time is added under its label."""

    def run(*args, **kwargs):
        begun = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - begun

    return run


def child(words: list[str]) -> int:
    """One run of the command, and the seconds of its parts as a line of JSON."""
    from importlib import import_module

    seconds: dict[str, float] = {}
    command = import_module("diffcli.commands.evaluate")
    for (module, name), label in PARTS.items():
        owner = import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, timed(seconds, label, getattr(owner, last)))
    stream = command.stream

    def drawn(*args):
        batches = stream(*args)
        step = timed(seconds, DRAWING, lambda: next(batches, None))
        yield from iter(step, None)

    command.stream = drawn
    from diffcli.cli import main

    code = main(["evaluate", *words])
    print(json.dumps(seconds))
    return code


def run(words: list[str], cache: Path) -> dict[str, float]:
    """The seconds of the parts of one run in a process of its own, and of all that is left."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--child", *words], env=env, capture_output=True, text=True)
    whole = time.perf_counter() - begun
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    seconds = json.loads(done.stdout.splitlines()[-1])
    return seconds | {REST: whole - sum(seconds.values())}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt")
    parser.add_argument("root", help="folder that holds MNIST")
    parser.add_argument(
        "--classifier", help="checkpoint of task=classifier, whose features are then taken; else pixels"
    )
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="1,000 samples, one batch drawn")
    args = parser.parse_args()
    n, batches = (1000, 1) if args.quick else (args.n, BATCHES)
    features = ["features=classifier", f"features.ckpt={args.classifier}"] if args.classifier else []
    with tempfile.TemporaryDirectory() as folder:
        from diffcli.data.torchvision_sets import MNIST

        there, cache = Path(folder), Path(folder) / "cache"
        x = MNIST(args.root).split("train").x[:n].numpy()
        noise = 3 * np.random.default_rng(0).standard_normal(x.shape, np.float32)
        np.save(there / "x.npy", (x + noise).round().clip(0, 255))
        common = ["repeats=1", f"batch_size={BATCH}", f"data.root={args.root}"]
        few = ["neighbours=false", "floor=false", f"n={batches * BATCH}", f"ckpt={args.ckpt}", f"out={there / 'few'}"]
        each = run(common + few, Path(folder) / "other")[DRAWING] / (batches * BATCH)
        many = [*common, *features, "data=mnist", f"samples={there / 'x.npy'}", f"n={n}"]
        found = {name: run([*many, f"out={there / name}"], cache) for name in ("cold", "warm")}
    sampling = each * n
    print(f"| {n:,} samples, 40 evaluations each; seconds | first evaluation | every later one |\n| --- | --- | --- |")
    print(f"| {DRAWING} ({1000 * each:.1f} ms each) | {sampling:.0f} | {sampling:.0f} |")
    for label in dict.fromkeys(label for one in found.values() for label in one):
        cells = " | ".join(f"{one.get(label, 0):.1f}" for one in found.values())
        print(f"| {label} | {cells} |")
    shares = " | ".join(f"**{sampling / (sampling + sum(one.values())):.1%}**" for one in found.values())
    print(f"| share of the sampling | {shares} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
