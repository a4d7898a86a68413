"""How long the program takes to begin: `diffcli --help`, and `diffcli sample` up to its first call of the network.

    python benchmarks/start.py [--rounds 7]        # a minute on two cores

The model is one step of `diffcli train` as it comes (the digits' U-Net).  Each start is a process of its own, the clock runs from
before that process is made; the first of each, which reads the files from the disk, is not counted.  Exits with 1 where the
median is above 0.3 s for --help, or 4 s for the network.  That neither loads what it does not need is a test
(tests/test_architecture.py); this is its time.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

LIMITS = {"diffcli --help": 0.3, "diffcli sample, to its first call of the network": 4.0}
CALLED = """
import os, sys, time
from diffcli.diffusion.prediction import Prediction

def called(*args, **kwargs):
    print("called", time.time(), flush=True)
    os._exit(0)

Prediction._call = called
from diffcli.cli import main
sys.exit(main(sys.argv[1:]))
"""


def helped() -> float:
    begun = time.time()
    subprocess.run([sys.executable, "-m", "diffcli", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.time() - begun


def sampled(folder: str) -> float:
    words = [sys.executable, "-c", CALLED, "sample", f"ckpt={folder}/run/checkpoints/last.ckpt", f"out={folder}/drawn"]
    begun = time.time()
    done = subprocess.run([*words, "overwrite=true"], check=True, capture_output=True, text=True)
    return float(done.stdout.split("called")[1]) - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["trainer.max_steps=1", "preview.every=0", f"out={folder}/run"]
        subprocess.run([sys.executable, "-m", "diffcli", "train", *words], check=True, stdout=subprocess.DEVNULL)
        took: dict[str, list[float]] = {name: [] for name in LIMITS}
        for _ in range(options.rounds + 1):
            for name, start in zip(LIMITS, (helped, lambda: sampled(folder)), strict=True):
                took[name].append(start())
    print("| start | median, s | longest | limit |\n| --- | --- | --- | --- |")
    medians = {name: statistics.median(seconds[1:]) for name, seconds in took.items()}
    for name, limit in LIMITS.items():
        print(f"| {name} | {medians[name]:.2f} | {max(took[name][1:]):.2f} | {limit} |")
    return int(any(medians[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
