"""Few steps on a trained model: the Fréchet distance of a tuned walk beside DPM-Solver++(2M)'s at twice the evaluations.

    python benchmarks/tuned.py MODEL.ckpt CLASSIFIER.ckpt DATA_ROOT [--n 2000] [--seeds 2] [--quick]

CLASSIFIER is of `experiment=mnist_classifier`.  A copy of MODEL is tuned by `diffcli tune`, unless MODEL has been; further words
are passed on to that, as `rounds=0`.  Each walk starts from the same noise, seed by seed, which is not the noise that tuning
saw; the distance is that of n samples to the 10,000 test images, mean over the seeds.  Beside it stand its difference to that of
the end of the ODE (sampler=abm, 40 steps), whose standard error over the seeds is small, since both begin at the same noise, and
the error to that end, median of |x - end|/sqrt(d).  The last table says at how many evaluations a walk is as near to the data
as DPM-Solver++(2M).  Takes 2.2 ms a sample and evaluation on one thread, 30 minutes in all; --quick 3.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from diffcli.checkpoint import build_denoiser, load_weights, read
from diffcli.commands.build import build
from diffcli.diffusion.grid import Scales, UniformLam
from diffcli.diffusion.samplers import AdamsMoulton, DPMpp2M, Sampler
from diffcli.diffusion.samplers.tuned import TunedSampler
from diffcli.metrics.features.classifier import ClassifierFeatures
from diffcli.metrics.features.statistics import Moments, collect
from diffcli.metrics.frechet import frechet
from diffcli.sampling import draw_samples

TEACHER = 40  # steps of the walk that stands for the end of the ODE
DPMPP, ABM, TUNED = "dpmpp_2m, uniform_lam", "abm, scales", "tuned"


class Bench:
    """A model, the test set's statistics, and one set of starts a seed."""

    def __init__(self, args):
        content = read(args.model)
        self.content, self.n, self.seeds = content, args.n, range(1, args.seeds + 1)
        self.denoiser = build_denoiser(content["config"]["denoiser"], None, content["state_dict"])
        load_weights(self.denoiser, content, "ema", args.model)
        self.denoiser.eval().requires_grad_(False)
        self.data = build(content["config"]["data"] | {"root": str(args.root), "download": False}, "data")
        self.network = ClassifierFeatures(str(args.classifier))
        self.network.setup(content["shape"], self.data.transform.levels)
        items = self.data.split("test")
        real = (items.__getitems__(range(i, min(i + 1000, len(items))))[0] for i in range(0, len(items), 1000))
        self.real = collect(real, self.network, self.data.transform.levels, samples=False).moments
        self.ends: dict[int, torch.Tensor] = {}

    def walk(self, sampler: Sampler, times: torch.Tensor, seed: int) -> torch.Tensor:
        with torch.no_grad():
            shape = tuple(self.content["shape"])
            return torch.cat([s.x for s in draw_samples(self.denoiser, sampler, times, shape, self.n, seed, 256)])

    def moments(self, x: torch.Tensor) -> Moments:
        transform = self.data.transform
        return collect([transform.decode(x)], self.network, transform.levels, samples=True).moments

    def measure(self, sampler: Sampler, times: torch.Tensor) -> dict[str, list[float]]:
        """Of each seed the distance, and the error to the ODE's end."""
        found: dict[str, list[float]] = {"frechet": [], "error": []}
        for seed in self.seeds:
            x = self.walk(sampler, times, seed)
            end = self.ends.setdefault(seed, x)
            found["frechet"].append(frechet(self.moments(x), self.real))
            gap = (x - end).flatten(1).norm(dim=1) / math.sqrt(x[0].numel())
            found["error"].append(gap.median().item())
        return found


def tune(model: Path, steps: list[int], more: list[str]) -> Path:
    """A copy of the model that has been tuned."""
    copy = Path(tempfile.mkdtemp()) / "model.ckpt"
    shutil.copy(model, copy)
    words = [f"ckpt={copy}", f"steps={json.dumps(steps)}".replace(" ", ""), f"out={copy.parent / 'tune'}", *more]
    subprocess.run([sys.executable, "-m", "diffcli", "tune", *words], check=True)
    return copy


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def error(values: list[float]) -> str:
    """The standard error of the mean, where there are several."""
    if len(values) < 2:
        return ""
    m = mean(values)
    return f" ± {math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1) / len(values)):.2g}"


def crossing(curve: dict[int, float], level: float) -> str:
    """The least of the evaluations at which a curve is no higher."""
    return next((str(nfe) for nfe, value in sorted(curve.items()) if value <= level), f"> {max(curve)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "classifier", "root"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 5, 6, 8, 10])
    parser.add_argument("--quick", action="store_true")
    args, more = parser.parse_known_args()
    if args.quick:
        args.n, args.seeds, args.steps = 500, 1, [5]
    if "tuned" not in read(args.model):
        args.model = tune(args.model, args.steps, more)
    bench = Bench(args)
    sde = bench.denoiser.sde
    entries = {e["steps"]: e for e in bench.content.get("tuned", []) if e["weights"] is not None}
    walks = [("the end of the ODE", TEACHER, AdamsMoulton(), Scales()(sde, TEACHER))]
    for steps in args.steps:
        walks += [(DPMPP, k, DPMpp2M(), UniformLam()(sde, k)) for k in (steps, 2 * steps)]
        walks += [(ABM, steps, AdamsMoulton(), Scales()(sde, steps))]
        if steps in entries:
            tables = {steps: (entries[steps]["times"], entries[steps]["weights"])}
            walks.append((TUNED, steps, TunedSampler(tables), entries[steps]["times"]))
    found = {}
    print(f"| walk | NFE | Fréchet distance, {args.n} samples | above the ODE's end | error |\n|---|---|---|---|---|")
    for name, steps, sampler, times in walks:
        if (name, steps) in found:
            continue
        here = found[name, steps] = bench.measure(sampler, times)
        over = [a - b for a, b in zip(here["frechet"], found["the end of the ODE", TEACHER]["frechet"], strict=True)]
        print(
            f"| {name} | {steps} | {mean(here['frechet']):.3g}{error(here['frechet'])} | {mean(over):+.3g}{error(over)}"
            f" | {mean(here['error']):.3g} |",
            flush=True,
        )
    curves = {who: {k: mean(v["frechet"]) for (name, k), v in found.items() if name == who} for who in (ABM, TUNED)}
    print("\n| dpmpp_2m at NFE | its distance | abm as near at | tuned as near at |\n|---|---|---|---|")
    for steps in sorted({k for name, k in found if name == DPMPP}):
        level = mean(found[DPMPP, steps]["frechet"])
        row = [crossing(curves[who], level) if curves[who] else "–" for who in (ABM, TUNED)]
        print(f"| {steps} | {level:.3g} | {row[0]} | {row[1]} |")


if __name__ == "__main__":
    main()
