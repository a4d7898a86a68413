"""What real images score against real images: the Fréchet distance of n test images to the whole training set.

    python benchmarks/frechet_floor.py SHARED_DATA [--fashion FOLDER] [--draws 50]

Reads the 10,000 test images of MNIST, CIFAR-10 and, where their files are given (Debian's dataset-fashion-mnist), Fashion-MNIST
with the feature networks of SHARED_DATA, and prints for each count of images the mean over random draws without replacement, its
standard error and the standard deviation of one draw, as a Markdown table beside the figures of SHARED_DATA/README.md, which are
means of 5 draws.  A perfect sampler scores this.  z is the difference in standard errors of the two means, the draws' own sd
taken for both.  Exits with 1 where |z| is above 4.
"""

import argparse
import gzip
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import torch

from diffcli.metrics.features.module import ModuleFeatures
from diffcli.metrics.features.statistics import Moments, collect
from diffcli.metrics.frechet import frechet

THEIRS = {  # README.md: n -> mean of 5 draws, at 10,000 the one value there is, and uniform noise
    "mnist_small": {200: 52, 500: 21, 1000: 10.1, 2000: 7.1, 5000: 3.6, 10000: 2.68, "noise": 46_000},
    "fashion_small": {200: 63, 500: 24, 1000: 8.8, 2000: 4.7, 5000: 1.9, 10000: 0.93, "noise": 3_100},
    "cifar_resnet20": {200: 0.81, 500: 0.33, 1000: 0.20, 2000: 0.086, 5000: 0.040, 10000: 0.021, "noise": 51},
}
DRAWS = 5  # of theirs


def module(path: Path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def images(name: str, shared: Path, fashion: Path | None) -> torch.Tensor | None:
    """The test images (10000, C, H, W) uint8, None where there is no file."""
    if name == "cifar_resnet20":
        x = module(shared / "unpack.py").read_cifar(shared / "cifar10/test_batch")[0]
        return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).contiguous()
    folder = shared / "mnist" if name == "mnist_small" else fashion
    if folder is None:
        return None
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        return torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--draws", type=int, default=50)
    args = parser.parse_args()
    worst = 0.0
    print("| features | n | mean ± s.e. | sd of one draw | README | z |\n| --- | --- | --- | --- | --- | --- |")
    for name, table in THEIRS.items():
        x = images(name, args.shared, args.fashion)
        if x is None:
            continue
        network = ModuleFeatures(module(args.shared / "feature_nets.py").load(name), label=name)
        network.setup(x.shape[1:], 256)
        with np.load(args.shared / f"weights/fid_stats_{name}.npz") as file:
            n = int(file["n_train"])
            mean, cov = (torch.from_numpy(file[f"{part}_train"]).double() for part in ("mu", "sigma"))
        train = Moments(n, mean, cov * (n - 1))
        features = collect([x], network, 256, samples=False, kept=len(x)).gathered.features
        generator = torch.Generator().manual_seed(0)
        for n, theirs in table.items():
            if n == "noise":
                drawn = torch.randint(0, 256, x[:2000].shape, generator=generator)
                values = [frechet(collect([drawn], network, 256, samples=True).moments, train)]
            elif n == len(x):
                values = [frechet(Moments.of(features), train)]
            else:
                orders = [torch.randperm(len(x), generator=generator)[:n] for _ in range(args.draws)]
                values = [frechet(Moments.of(features[order]), train) for order in orders]
            values = torch.tensor(values, dtype=torch.float64)
            found = values.mean().item()
            if len(values) == 1:
                print(f"| {name} | {n} | {found:.4g} | | {theirs:g} | |", flush=True)
                continue
            sd = values.std().item()
            z = (theirs - found) / (sd * math.sqrt(1 / DRAWS + 1 / len(values)))
            worst = max(worst, abs(z))
            error = sd / math.sqrt(len(values))
            print(f"| {name} | {n:,} | {found:.3g} ± {error:.1g} | {sd:.2g} | {theirs:g} | {z:+.1f} |", flush=True)
    print(f"\nlargest |z| {worst:.1f}")
    return int(worst > 4)


if __name__ == "__main__":
    sys.exit(main())
