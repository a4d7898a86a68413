"""What `dry_run=true` predicts, over what the run then takes: seconds by the clock, seconds of CPU time, peak memory.

    python benchmarks/dry_run.py DATA_ROOT [--ckpt CKPT] [--pairs 3] [--quick]  # 20 minutes on 2 quiet cores; --quick 3

DATA_ROOT has MNIST/raw; CKPT is a run on it, drawn from by a one-step, a multistep and an adaptive sampler.  Each line is
predicted, then run as it stands, in processes of their own, in pairs: a figure is the median of their ratios.  Exits with 1 where
one is off by more than a fifth, the clock aside: what else the machine does falls on one of the two alone.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
TRAIN = [
    "train data=moons network=mlp trainer.max_steps=4000 batch_size=512",
    "train data=mnist data.root={root} network.channels=16 trainer.max_steps=150 trainer.val_check_interval=100",
    "train data=mnist data.root={root} experiment=mnist_edm trainer.max_steps=60 checkpoint.every=30 preview.every=60",
    "train network.channels=16 trainer.max_steps=80 trainer.accumulate_grad_batches=2 preview.every=40",
]
SAMPLE = [
    "sample ckpt={ckpt} n=256 batch_size=64 sampler=heun steps=20",
    "sample ckpt={ckpt} n=128 batch_size=64 sampler=dpmpp_2m steps=20",
    "sample ckpt={ckpt} n=64 batch_size=32 sampler=rk45",
    "sample network=exact data=mixture data.name=sixteen n=8192 batch_size=512 sampler=heun steps=100",
]
QUICK = (TRAIN[0], TRAIN[3], SAMPLE[3])


def predicted(text: str) -> tuple[float, float, float]:
    """Seconds by the clock, of CPU time, and bytes, as the lines say."""
    time = r"((?:[\d.]+ (?:ms|s|min|h) ?)+)"
    clock, cpu = re.search(rf"predicted: {time}; {time}of CPU time", text.replace(",", "")).groups()
    memory = re.search(r"predicted: ([\d.]+) (\w+) of memory", text)
    return seconds(clock), seconds(cpu), float(memory[1]) * UNITS[memory[2]]


def seconds(words: str) -> float:
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+) (\w+)", words))


def run(line: str, folder: str, *more: str) -> str:
    words = [sys.executable, "-m", "diffcli", *line.split(), *more]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def taken(words: str, folder: str) -> tuple[float, float, float]:
    """The same of the run."""
    run(words, folder, "out=run", "overwrite=true")
    with open(f"{folder}/run/run.json") as file:
        record = json.load(file)
    return record["seconds"], record["results"]["cpu_seconds"], record["results"]["peak_memory"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that holds MNIST/raw")
    parser.add_argument("--ckpt", help="left out, no trained model is sampled")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    lines = QUICK if args.quick else TRAIN + SAMPLE
    print("| command | took, s | clock | CPU time | memory |\n| --- | --- | --- | --- | --- |")
    off = False
    with tempfile.TemporaryDirectory() as folder:
        for line in lines:
            if "{ckpt}" in line and args.ckpt is None:
                continue
            words = line.format(root=args.root, ckpt=args.ckpt)
            pairs = [(predicted(run(words, folder, "dry_run=true")), taken(words, folder)) for _ in range(args.pairs)]
            ratios = [[a / b for a, b in zip(told, took, strict=True)] for told, took in pairs]
            shares = [statistics.median(of) for of in zip(*ratios, strict=True)]
            off |= any(abs(share - 1) > 0.2 for share in shares[1:])
            cells = [f"{statistics.median(took[0] for _, took in pairs):.1f}", *(f"{share:.2f}" for share in shares)]
            print(f"| `{line.replace(' data.root={root}', '')}` | {' | '.join(cells)} |", flush=True)
    return int(off)


if __name__ == "__main__":
    sys.exit(main())
