"""Score error and processor time a step of esm, ism, ssm and dsm against the dimension, on Gaussian mixtures.

    python benchmarks/score_matching_dimensions.py --out outputs/benchmarks

One noise level, for each d the same mixture, network, batches and number of steps for every loss; the error is
sqrt(E ||s_theta - s||^2 / E ||s||^2) over fresh noised items.  Writes score_matching_dimensions.csv and .png.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.loss import DSM, ESM, ISM, SSM, TrainingSet
from diffcli.diffusion.prediction import Score
from diffcli.diffusion.sde import OneLevel
from diffcli.networks.mlp import MLP
from diffcli.randomness import Draw

DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
SIGMA = 0.5
LOSSES = {"esm": lambda: ESM("known"), "ism": ISM, "ssm": SSM, "dsm": lambda: DSM("simple")}
NAMES = {"esm": "esm (known score)", "ism": "ism (exact trace)", "ssm": "ssm (one projection)", "dsm": "dsm"}


def mixture(d: int) -> GaussianMixture:
    """Three components with full covariances."""
    generator = torch.Generator().manual_seed(d)
    a, means = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((3, d, d), (3, d)))
    covs = a @ a.mT / d * 0.2 + 0.1 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covs)


def train(name: str, d: int, steps: int, batch: int) -> tuple[float, float]:
    """Relative score error after training, and processor seconds a step."""
    truth, sde, loss = mixture(d), OneLevel(1.0, SIGMA), LOSSES[name]()
    torch.manual_seed(0)
    model = Score(sde, MLP([d], width=128, blocks=2))
    loss.setup(model, TrainingSet(lambda: torch.zeros(1, d), (d,), None, truth))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    data = truth.sample(steps * batch, torch.Generator().manual_seed(1))[0].float().split(batch)
    begun = time.process_time()
    for step, x0 in enumerate(data):
        optimizer.zero_grad()
        loss(model, x0, Draw(0, step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    seconds = (time.process_time() - begun) / steps
    x0 = truth.sample(10_000, torch.Generator().manual_seed(2))[0]
    x = x0 + SIGMA * torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(3))
    exact = truth.score(x, 1.0, SIGMA)
    with torch.no_grad():
        wrong = model.score(x.float(), torch.zeros((), dtype=torch.float64)).double() - exact
    return (wrong.square().sum() / exact.square().sum()).sqrt().item(), seconds


def draw(rows: list[dict], path: Path) -> None:
    """Error on the left, milliseconds a step on the right."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in LOSSES:
        mine = [r for r in rows if r["loss"] == name]
        d = [r["d"] for r in mine]
        axes[0].plot(d, [100 * r["error"] for r in mine], marker="o", label=NAMES[name])
        axes[1].plot(d, [1000 * r["seconds_a_step"] for r in mine], marker="o")
    for axis, label in zip(axes, ("relative score error, %", "processor time a step, ms"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="dimension d", ylabel=label)
        axis.set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = []
    print("| d | " + " | ".join(f"{n} error, ms a step" for n in LOSSES) + " |\n|" + "---|" * (len(LOSSES) + 1))
    for d in DIMENSIONS:
        found = {name: train(name, d, options.steps, options.batch) for name in LOSSES}
        rows += [{"d": d, "loss": n, "error": e, "seconds_a_step": s} for n, (e, s) in found.items()]
        cells = " | ".join(f"{100 * e:.1f} %, {1000 * s:.1f}" for e, s in found.values())
        print(f"| {d} | {cells} |", flush=True)
    with (options.out / "score_matching_dimensions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.out / "score_matching_dimensions.png")


if __name__ == "__main__":
    main()
