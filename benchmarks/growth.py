"""How the cost grows: with parameters, batch, resolution, dimension, evaluations, and number of devices.

    python benchmarks/growth.py --out docs/growth.png        # some five minutes on a quiet machine; --quick: one

Along each axis all else is fixed.  A step is forward, loss, backward and AdamW, with EMA, data and the rest of `diffcli train` only
on the axis of devices.  Cost is processor time on one thread, the sizes of an axis taken in turn, medians; "kept" are the bytes
that the backward pass finds again.  The law is `cost = c0 + c size^a`, fitted to all sizes, with the interval of a at 95 %; the
table says which a arithmetic alone would give, and c0 is what does not grow.  Devices: whole trainings (`diffcli train devices=N`,
N processes with gloo, the same batch for each), samples a second after the first half of the steps.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import curve_fit
from scipy.stats import t as student

from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.loss import DSM, TrainingSet
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import Heun, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet
from diffcli.randomness import Draw, ItemNoise


@dataclass
class Axis:
    """Sizes, what is done at each, its expected law `size^expected`, and what is drawn."""

    name: str
    unit: str
    sizes: list[int]
    work: Callable[[int], Callable[[], object]]
    expected: str
    size_of: Callable[[int], int] = int  # what the cost is a law of, of each size


def training(net, shape: tuple[int, ...], batch: int) -> Callable[[], object]:
    """A bare step."""
    torch.manual_seed(0)
    model, loss = Eps(VP(Linear()), net), DSM("simple")
    loss.setup(model, TrainingSet(lambda: torch.zeros(1, *shape), shape, None, None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x0 = torch.randn(batch, *shape)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, x0, Draw(0, 0)).mean().backward()
        optimizer.step()

    return step


def unet(side: int, channels: int = 32) -> UNet:
    return UNet([1, side, side], channels, attention=[])


def walking(evaluations: int) -> Callable[[], object]:
    torch.manual_seed(0)
    model = Eps(VP(Linear()), unet(16).eval().requires_grad_(False))
    times, x = UniformLam()(model.sde, evaluations // 2), torch.randn(16, 1, 16, 16)
    noise = ItemNoise(0, range(16), (1, 16, 16))
    return lambda: sample(model, Heun(), x, times, noise, last="stop")


def exact_likelihood(d: int) -> Callable[[], object]:
    torch.manual_seed(0)
    model = Eps(VP(Linear()), MLP([d]).eval().requires_grad_(False)).double()
    likelihood = Likelihood("exact", solver="rk4", steps=2)
    likelihood.setup(model, TrainingSet(lambda: torch.zeros(1, d), (d,), None, None))
    x, noise = torch.randn(16, d, dtype=torch.float64), ItemNoise(0, range(16), (d,), torch.float64)
    return lambda: likelihood(model, x, noise)


def parameters(channels: int) -> int:
    return sum(p.numel() for p in unet(16, channels).parameters())


STEP, SIDE = "U-Net 1x16x16", (1, 16, 16)
AXES = [
    Axis(
        "parameters",
        f"{STEP}, batch 16, a step",
        [8, 16, 24, 32, 48, 64, 96, 128],
        lambda c: training(unet(16, c), SIDE, 16),
        "1",
        parameters,
    ),
    Axis("batch", f"{STEP}, a step", [1, 2, 4, 8, 16, 32, 64], lambda b: training(unet(16), SIDE, b), "1"),
    Axis(
        "resolution",
        "U-Net 1xRxR without attention, batch 4, a step",
        [8, 16, 24, 32, 48, 64],
        lambda r: training(unet(r), (1, r, r), 4),
        "2",
    ),
    Axis(
        "dimension",
        "perceptron on d numbers, batch 256, a step",
        [16, 64, 256, 1024, 2048, 4096, 8192],
        lambda d: training(MLP([d]), (d,), 256),
        "1",
    ),
    Axis(
        "dimension (exact likelihood)",
        "perceptron, 16 items, 8 evaluations",
        [4, 8, 16, 32, 64, 96],
        exact_likelihood,
        "1",
    ),
    Axis("NFE", "heun, U-Net 1x16x16, 16 samples", [2, 4, 8, 16, 24, 32], walking, "1"),
]


def kept(work: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass, each tensor once."""
    found: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        work()
    return sum(found.values())


def fit(sizes: list[float], costs: list[float]) -> tuple[Callable, float, float]:
    """`cost = c0 + c size^a` of least squares in relative errors, all three >= 0: the law, a, and half of its 95 % interval."""
    largest = max(sizes)

    def law(size, c0, c, a):
        return c0 + c * (np.asarray(size) / largest) ** a

    guess = min(costs) / 2, max(costs), 1.0
    found, spread = curve_fit(law, sizes, costs, guess, costs, bounds=(0, np.inf), maxfev=100_000)
    within = student.ppf(0.975, len(sizes) - 3) * math.sqrt(spread[2, 2])
    return lambda size: law(size, *found), found[2], within


def measure(axis: Axis, rounds: int) -> list[dict]:
    """Median processor seconds at each size, in turn."""
    works = {size: axis.work(size) for size in axis.sizes}
    memory = {size: kept(work) for size, work in works.items()}  # also its first, slower time
    took: dict[int, list[float]] = {size: [] for size in works}
    for _ in range(rounds):
        for size, work in works.items():
            begun = time.process_time()
            work()
            took[size].append(time.process_time() - begun)
    return [
        {"axis": axis.name, "size": axis.size_of(s), "seconds": statistics.median(took[s]), "kept": memory[s]}
        for s in works
    ]


def devices(counts: tuple[int, ...], steps: int) -> list[dict]:
    """Seconds a sample of whole trainings, by the rows of metrics.csv after the first half."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in counts:
            words = f"train devices={n} trainer.max_steps={steps} preview.every=0 checkpoint.keep=0 out={folder}/{n}".split()
            words += ["data=digits", "trainer.log_every_n_steps=5", f"trainer.val_check_interval={10**6}"]
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, "-m", "diffcli", *words], env=env, check=True, stdout=subprocess.DEVNULL)
            with open(f"{folder}/{n}/metrics.csv", newline="") as file:
                found = [r for r in csv.DictReader(file) if r["samples_per_second"] and int(r["step"]) >= steps // 2]
            rate = statistics.median(float(r["samples_per_second"]) for r in found)
            rows.append({"axis": "devices", "size": n, "seconds": 1 / rate, "kept": 0})
    return rows


def number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def line(axis: Axis, rows: list[dict]) -> str:
    sizes = [r["size"] for r in rows]
    _, a, within = fit(sizes, [r["seconds"] for r in rows])
    keeps = ""
    if (kept := [r["kept"] for r in rows])[-1]:
        _, b, beside = fit(sizes, kept)
        grows = max(kept) > 1.1 * min(kept)  # of what does not, no power is found
        law = f"{b:.2f} ± {beside:.2f}" if grows else "0"
        keeps = f"{' / '.join(number(k / 2**20) for k in kept)} | {law}"
    cells = [
        f"{axis.name}: {axis.unit}",
        " / ".join(map(number, sizes)),
        " / ".join(number(1e3 * r["seconds"]) for r in rows),
    ]
    return "| " + " | ".join([*cells, f"{a:.2f} ± {within:.2f}", axis.expected, keeps or "– | –"]) + " |"


def draw(rows: list[dict], path: Path) -> None:
    """A panel an axis, with its law."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    names = list(dict.fromkeys(r["axis"] for r in rows))
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    axes = figure.subplots(2, math.ceil(len(names) / 2)).ravel()
    for plot in axes[len(names) :]:
        plot.set_visible(False)
    for name, plot in zip(names, axes[: len(names)], strict=True):
        mine = [r for r in rows if r["axis"] == name]
        sizes, cost = [r["size"] for r in mine], [1e3 * r["seconds"] for r in mine]
        plot.plot(sizes, cost, "o")
        if len(sizes) > 3:
            law, a, within = fit(sizes, cost)
            fine = np.geomspace(min(sizes), max(sizes))
            plot.plot(fine, law(fine), "-", lw=1, label=f"a = {a:.2f} ± {within:.2f}")
            plot.legend(frameon=False)
        if name == "devices":
            plot.set(xticks=sizes, xlim=(0.5, max(sizes) + 0.5), ylim=(0, None), xlabel=name, ylabel="ms a sample")
        else:
            plot.set(xscale="log", yscale="log", xlabel=name, ylabel="ms")
            for side, values in ((plot.xaxis, sizes), (plot.yaxis, cost)):
                side.set_major_locator(LogLocator(subs=(1, 3) if max(values) < 200 * min(values) else (1,)))
                side.set_major_formatter(EngFormatter(sep=""))
                side.set_minor_formatter(NullFormatter())
        plot.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a picture, and a .csv beside it")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="the axes whose name has this word")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| along | sizes | ms | law c0 + c size^a: a | arithmetic | kept for the backward pass, MiB | its a |")
    print("|---|---|---|---|---|---|---|")
    rows: list[dict] = []
    for axis in AXES:
        if options.only and options.only not in axis.name:
            continue
        if options.quick:
            axis.sizes = axis.sizes[:-2]
        found = measure(axis, 3 if options.quick else 9)
        print(line(axis, found), flush=True)
        rows += found
    if not options.only or options.only in "devices":
        found = devices((1, 2), 20 if options.quick else 60)
        one, two = (1 / r["seconds"] for r in found)
        print(
            f"\ndevices: {one:.0f} samples/s by one process, {two:.0f} by two ({two / one:.2f} times; 2 would be all)"
        )
        rows += found
    if options.out:
        draw(rows, options.out)
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
