"""How recognisable sampled MNIST digits are: a classifier trained on the real ones judges samples.npy of several runs.

    python benchmarks/mnist.py DATA_ROOT outputs/mnist/*/sample

Trains a small convolutional network on the 60,000 training digits (two minutes on one core), prints its accuracy on the test
digits and the share of them of which it is sure (p >= 0.9), then for each folder a line of a Markdown table: the share of
samples of which it is sure, the least frequent class among those, network evaluations a sample, and the training's CPU time.
Exits with 1 where a folder has below 80 % or lacks a class.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.datasets import MNIST

PASSES, BATCH = 2, 128


def digits(root: str, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits (N, 1, 28, 28) in [0, 1] and their labels."""
    data = MNIST(root, train=train)
    return data.data[:, None].float() / 255, data.targets


def judge(root: str) -> nn.Module:
    """A classifier of real digits."""
    torch.manual_seed(0)
    x, y = digits(root, train=True)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 49, 10),
    )  # fmt: skip
    optim = torch.optim.AdamW(net.parameters())
    steps = PASSES * len(x) // BATCH
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    order = torch.cat([torch.randperm(len(x)) for _ in range(PASSES)])
    for batch in order[: steps * BATCH].split(BATCH):
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        optim.zero_grad()
        loss.backward()
        optim.step()
        decay.step()
    return net.eval().requires_grad_(False)


def probabilities(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(part).softmax(1) for part in x.split(500)])


def main(root: str, folders: list[str]) -> int:
    net = judge(root)
    x, y = digits(root, train=False)
    p = probabilities(net, x)
    accuracy, real = (p.argmax(1) == y).float().mean(), (p.amax(1) >= 0.9).float().mean()
    print(f"the classifier: {accuracy:.2%} of the test digits right, sure of {real:.1%}\n")
    print(
        "| run | sampler | NFE | sure (p >= 0.9) | least frequent class | training, CPU minutes |\n|---|---|---|---|---|---|"
    )
    good = True
    for folder in map(Path, folders):
        record = json.loads((folder / "run.json").read_text())
        config = record["config"]
        training = json.loads((Path(config["ckpt"]).parents[1] / "run.json").read_text())
        p = probabilities(net, torch.from_numpy(np.load(folder / "samples.npy")).float().clip(0, 255) / 255)
        sure = p.amax(1) >= 0.9
        counts = np.bincount(p.argmax(1)[sure], minlength=10)
        minutes = training["results"].get("cpu_seconds", training["seconds"]) / 60
        sampler = config["sampler"]["_target_"].rpartition(".")[2]
        print(
            f"| {Path(config['ckpt']).parents[1].name} | {sampler} | {record['nfe']['mean']:.0f} "
            f"| {sure.float().mean():.1%} of {len(p)} | {counts.min()} | {minutes:.0f} |"
        )
        good &= bool(sure.float().mean() >= 0.8 and (counts > 0).all())
    return 0 if good else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
