"""How recognisable sampled MNIST digits are: a classifier trained on the real ones judges samples.npy of several runs.

    python benchmarks/mnist.py DATA_ROOT outputs/mnist/*-samples [--judge WEIGHTS.safetensors]

Trains a small convolutional network on the 60,000 training digits (six minutes on one core), or loads it, prints its accuracy on
the test digits and the share of them of which it is sure (p >= 0.9), then for each folder a line of a Markdown table: the share
of samples of which it is sure and its standard error, the least frequent class among those, network evaluations a sample, and
the training's processor time.  Exits with 1 where a folder has below 80 % or lacks a class.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.datasets import MNIST

PASSES, BATCH = 4, 128


def digits(root: str, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits (N, 1, 28, 28) in [0, 1] and their labels."""
    data = MNIST(root, train=train)
    return data.data[:, None].float() / 255, data.targets


class Judge(nn.Module):
    """Logits (N, 10) of digits (N, 1, 28, 28) in [0, 1]: four convolutions with batch norm, two of them strided, two layers."""

    def __init__(self, width: int = 32):
        super().__init__()
        w = width
        self.c1, self.c2 = nn.Conv2d(1, w, 3, padding=1), nn.Conv2d(w, w, 3, stride=2, padding=1)
        self.c3, self.c4 = nn.Conv2d(w, 2 * w, 3, padding=1), nn.Conv2d(2 * w, 2 * w, 3, stride=2, padding=1)
        self.b1, self.b2, self.b3, self.b4 = (nn.BatchNorm2d(c) for c in (w, w, 2 * w, 2 * w))
        self.fc, self.out = nn.Linear(2 * w * 49, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = 2 * x - 1
        for conv, norm in ((self.c1, self.b1), (self.c2, self.b2), (self.c3, self.b3), (self.c4, self.b4)):
            h = norm(conv(h)).relu()
        return self.out(self.fc(h.flatten(1)).relu())


def judge(root: str) -> nn.Module:
    """A classifier of real digits."""
    torch.manual_seed(0)
    x, y = digits(root, train=True)
    net = Judge()
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
    return net


def probabilities(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(part).softmax(1) for part in x.split(500)])


def main(root: str, folders: list[str], weights: str | None) -> int:
    if weights is None:
        net = judge(root)
    else:
        net = Judge()
        net.load_state_dict(load_file(weights))
    net.eval().requires_grad_(False)
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
        share = sure.double().mean().item()
        minutes = training["results"].get("cpu_seconds", training["seconds"]) / 60
        sampler = config["sampler"]["_target_"].rpartition(".")[2]
        print(
            f"| {Path(config['ckpt']).parents[1].name} | {sampler} | {record['nfe']['mean']:.0f} "
            f"| {share:.1%} ± {(share * (1 - share) / len(p)) ** 0.5:.1%} of {len(p)} | {counts.min()} | {minutes:.0f} |"
        )
        good &= share >= 0.8 and bool((counts > 0).all())
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--judge", help="weights of the classifier, trained elsewhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(main(options.root, options.folders, options.judge))
