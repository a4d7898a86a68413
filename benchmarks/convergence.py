"""Steps and time to a given held-out loss on MNIST and CIFAR-10: losses, weights, times drawn, averages of the weights.

    python benchmarks/convergence.py DATA_ROOT --out runs.json [--quick]    # two hours on one quiet core; --quick 15 minutes
    python benchmarks/convergence.py DATA_ROOT --out runs.json --classifier CKPT    # and the Fréchet distances of MNIST's runs

Every run trains the same network (a U-Net on patches of 2 x 2 pixels) from the same weights on the same batches of 32 with the
default optimiser (AdamW, warm-up, cosine decay) on the VP SDE; what differs is in VARIANTS.  Each run carries all averages of
PROFILES at once.  The measure is one for all, whatever a run minimises: the held-out error of the noise at 256 items, one level
each, levels even in lam = log(alpha/sigma) on [-4, 4], items and noise never changing.  `bound` is `1/2 ∫ E|eps - eps_theta|^2/d
dlam / log 2`, the part of the variational bound that training can lower, in bits/dim; `scaled` is the mean of
`(1 + (r/sd)^2) |eps - eps_theta|^2/d`, r = sigma/alpha, EDM's error of unit variance, in which each level counts alike.
Prints both at the end and after how many steps each run has reached what the first has at its end; time is the CPU time of the
steps alone.  With --classifier (diffcli train task=classifier) also the Fréchet distance of 500 samples (dpm2, 20 evaluations)
in its features.  Runs that are in --out are not done again, so that an interrupted one goes on.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from diffcli.data.torchvision_sets import CIFAR10, MNIST
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.loss import DSM, EDM
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.prediction import EDM as EDMPrediction
from diffcli.diffusion.prediction import Eps, V
from diffcli.diffusion.samplers.base import sample
from diffcli.diffusion.samplers.dpm import DPM2
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.diffusion.time_sampling import TimeSampler
from diffcli.networks.unet import UNet
from diffcli.randomness import Draw, ItemNoise
from diffcli.training.ema_profile import Constant, Power
from diffcli.training.optim import Optim

SETS = {"mnist": MNIST, "cifar10": lambda root: CIFAR10(root, batches=batches_there(root))}
BATCH, HELD_OUT, READINGS, RANGE = 32, 256, 5, 4.0
PROFILES = {
    "raw": None,
    "0.98": Constant(0.98),
    "0.995": Constant(0.995),
    "power 0.05": Power(0.05),
    "power 0.10": Power(0.10),
    "power 0.15": Power(0.15),
}


def batches_there(root: str) -> int:
    """The first files of CIFAR-10 that are in the folder."""
    return sum((Path(root) / f"cifar-10-batches-py/data_batch_{i}").exists() for i in range(1, 6))


SHOWN = "0.995"  # the default


class Independent(TimeSampler):
    """The times of another sampler at independent uniform numbers."""

    def __init__(self, inner: TimeSampler):
        self.inner = inner

    def place(self, sde, u):
        return self.inner.place(sde, u)

    def __call__(self, sde, n, draw):
        return self.place(sde, draw.uniform("t", (n,), torch.float64))


def independent(loss: DSM) -> DSM:
    loss.time = Independent(loss.time)
    return loss


VARIANTS = {  # name: (prediction, loss)
    "eps, dsm simple": (Eps, lambda: DSM()),
    "eps, dsm simple, independent t": (Eps, lambda: independent(DSM())),
    "eps, dsm min_snr": (Eps, lambda: DSM("min_snr")),
    "edm, edm loss (-1.2, 1.2)": (EDMPrediction, lambda: EDM()),
    "edm, edm loss (0.4, 1.4)": (EDMPrediction, lambda: EDM(0.4, 1.4)),
    "v, dsm simple": (V, lambda: DSM()),
    "edm, dsm simple": (EDMPrediction, lambda: DSM()),
    "edm, dsm min_snr": (EDMPrediction, lambda: DSM("min_snr")),
    "eps, dsm likelihood, importance": (Eps, lambda: DSM("likelihood", "importance")),
    "edm, dsm learned": (EDMPrediction, lambda: DSM("learned")),
}


class Patches(nn.Module):
    """A U-Net on patches of 2 x 2 pixels: a quarter of the cost of one on the pixels."""

    def __init__(self, shape):
        super().__init__()
        c, h, w = shape
        self.inner = UNet([4 * c, h // 2, w // 2], channels=16, multipliers=[1, 2])

    def forward(self, x, c_noise):
        return F.pixel_shuffle(self.inner(F.pixel_unshuffle(x, 2), c_noise), 2)


class Run:
    """One variant on one set of images."""

    def __init__(self, data, variant: str, seed: int, steps: int):
        self.data, self.steps, self.seed = data, steps, seed
        prediction, make = VARIANTS[variant]
        torch.manual_seed(seed)
        net = Patches(data.shape)
        x = data.transform.encode(data.split("train").__getitems__(range(5000))[0])
        self.sd = x.double().std().item()
        more = {"sigma_data": self.sd} if prediction is EDMPrediction else {}
        self.denoiser, self.loss = prediction(VP(Linear()), net, **more), make()
        self.loss.setup(self.denoiser, TrainingSet(lambda: x, data.shape, 256))
        held = data.transform.encode(data.split("val").__getitems__(range(HELD_OUT))[0])
        self.held = held, ItemNoise(0, range(HELD_OUT), data.shape)(0)
        # in an order that puts every level beside every kind of item
        at = (torch.arange(HELD_OUT, dtype=torch.float64) * 0.6180339887498949 + 0.5 / HELD_OUT) % 1
        self.lam = RANGE * (2 * at - 1)

    def batches(self):
        train, order = self.data.split("train"), []
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            if len(order) < BATCH:
                order = torch.randperm(len(train), generator=generator).tolist()
            chosen, order = order[:BATCH], order[BATCH:]
            yield train.__getitems__(chosen)[0]

    def measure(self) -> dict[str, float | list[float]]:
        """The held-out error with the weights as they are."""
        x0, eps = self.held
        t = self.denoiser.sde.time(self.lam)
        found = []
        with torch.no_grad():
            for part in torch.arange(HELD_OUT).split(128):
                xt = self.denoiser.sde.perturb(x0[part], t[part], eps[part])
                found.append((self.denoiser.eps(xt, t[part]) - eps[part]).flatten(1).double().square().mean(1))
        error = torch.cat(found)
        scaled = error * (1 + torch.exp(-2 * self.lam) / self.sd**2)
        order = self.lam.argsort()
        return {
            "bound": (RANGE * error.mean() / math.log(2)).item(),
            "scaled": scaled.mean().item(),
            "levels": [round(v, 6) for v in error[order].view(16, -1).mean(1).tolist()],
        }

    def train(self, report) -> dict:
        weights = [p for p in [*self.denoiser.parameters(), *self.loss.parameters()] if p.requires_grad]
        own = list(self.denoiser.network.parameters())
        optim = Optim()
        optimizer = optim.build(weights)
        averages = {name: [p.detach().clone() for p in own] for name, profile in PROFILES.items() if profile}
        curve, seconds = [], 0.0
        for step, x in enumerate(self.batches()):
            begun = time.process_time()
            draw = Draw(self.seed, step)
            x0 = self.data.transform.encode(x, draw.uniform("dequantize", x.shape)).float()
            loss = (self.loss(self.denoiser, x0, draw) / x0[0].numel()).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = optim.rate(step, self.steps)
            optimizer.step()
            seconds += time.process_time() - begun  # a machine that others share: CPU time, without the measuring
            for name, average in averages.items():
                torch._foreach_lerp_(average, [p.detach() for p in own], 1 - PROFILES[name](step + 1))
            if (step + 1) % (self.steps // READINGS) == 0:
                curve.append({"step": step + 1, "seconds": seconds, **self.each(averages)})
                report(curve[-1])
        self.averages = averages
        return {"steps": self.steps, "seconds": seconds, "curve": curve}

    def each(self, averages) -> dict:
        raw = [p.detach().clone() for p in self.denoiser.network.parameters()]
        found = {"raw": self.measure()}
        for name, average in averages.items():
            self.put(average)
            found[name] = self.measure()
        self.put(raw)
        return found

    def put(self, values) -> None:
        with torch.no_grad():
            for p, value in zip(self.denoiser.network.parameters(), values, strict=True):
                p.copy_(value)

    def frechet(self, classifier: str, n: int = 500) -> dict[str, float]:
        from diffcli.metrics.features.classifier import ClassifierFeatures
        from diffcli.metrics.features.statistics import collect
        from diffcli.metrics.frechet import frechet

        network = ClassifierFeatures(classifier)
        network.setup(self.data.shape, 256, torch.device("cpu"))
        real = collect([self.data.split("test").__getitems__(range(10_000))[0]], network, 256, samples=False)
        sampler, sde, found = DPM2(), self.denoiser.sde, {}
        for name in ("0.995", "power 0.10"):
            self.put(self.averages[name])
            drawn = []
            with torch.no_grad():
                for first in range(0, n, 100):
                    noise = ItemNoise(1, range(first, first + 100), self.data.shape)
                    x = sample(self.denoiser, sampler, sde.sample_prior(noise(0)), UniformLam(1e-3)(sde, 10), noise).x
                    drawn.append(self.data.transform.decode(x))
            found[name] = frechet(collect(drawn, network, 256, samples=True).moments, real.moments)
        return found


def reached(curve: list[dict], what: str, target: float, profile: str) -> str:
    """After how many steps the held-out loss is at the target, between readings as a power of the steps."""
    before = None
    for row in curve:
        value = row[profile][what]
        if value <= target:
            if before is None:
                return f"< {row['step']}"
            (x0, y0), (x1, y1) = ((math.log(step), math.log(v)) for step, v in (before, (row["step"], value)))
            return f"{math.exp(x0 + (x1 - x0) * (math.log(target) - y0) / (y1 - y0)):.0f}"
        before = row["step"], value
    return "–"


def table(runs: dict) -> str:
    lines = []
    for head in dict.fromkeys(key.rpartition("|")[0] for key in runs):
        mine = {key.rpartition("|")[2]: run for key, run in runs.items() if key.startswith(f"{head}|")}
        first = next(iter(mine.values()))
        targets = {what: first["curve"][-1][SHOWN][what] for what in ("bound", "scaled")}
        name, seed = head.split("|")
        lines += [
            f"\n{name}, seed {seed}, {first['steps']} steps, average {SHOWN}\n",
            "| training | bound | steps to the first's | scaled | steps to the first's | ms a step | Fréchet |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for variant, run in mine.items():
            end = run["curve"][-1][SHOWN]
            cells = [c for w in targets for c in (f"{end[w]:.4g}", reached(run["curve"], w, targets[w], SHOWN))]
            distance = f"{run['frechet'][SHOWN]:.1f}" if "frechet" in run else ""
            each = 1000 * run["seconds"] / run["steps"]
            lines.append(f"| {variant} | {' | '.join(cells)} | {each:.0f} | {distance} |")
        lines += [
            "",
            "| average | " + " | ".join(f"{p}" for p in PROFILES) + " |",
            "| --- " * (len(PROFILES) + 1) + "|",
        ]
        for what in targets:
            means = [
                sum(math.log(run["curve"][-1][p][what] / run["curve"][-1]["raw"][what]) for run in mine.values())
                / len(mine)
                for p in PROFILES
            ]
            cells = " | ".join(f"{math.exp(m):.4f}" for m in means)
            lines.append(f"| {what} at the end over that of the raw weights, all runs | {cells} |")
    return "\n".join(lines)


def train(args, runs: dict) -> None:
    """The runs that are not there yet, each written as it is done."""
    loaded = {}
    for variant in args.only:
        for part in args.plan.split(","):
            name, seed = part.split(":")
            data = loaded.setdefault(name, SETS[name](args.root))
            key = f"{name}|{seed}|{variant}"
            if key in runs and ("frechet" in runs[key] or not args.classifier or name != "mnist"):
                continue
            run = Run(data, variant, int(seed), args.steps)
            file = args.out.with_suffix(f".{key.replace('|', '-').replace(' ', '_')}.pt")
            if key not in runs:
                runs[key] = run.train(lambda row, key=key: print(key, row["step"], row[SHOWN], file=sys.stderr))
                torch.save(run.averages, file)
            elif file.exists():
                run.averages = torch.load(file)
            if args.classifier and name == "mnist" and hasattr(run, "averages"):
                runs[key]["frechet"] = run.frechet(args.classifier)
            args.out.write_text(json.dumps(runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--out", type=Path, default=Path("convergence.json"))
    parser.add_argument("--classifier")
    parser.add_argument("--plan", default="mnist:0,mnist:1,cifar10:0", help="SET:SEED,...")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--quick", action="store_true", help="400 steps, the first six variants, MNIST")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.only, args.plan = 400, list(VARIANTS)[:6], "mnist:0"
    runs = json.loads(args.out.read_text()) if args.out.exists() else {}
    train(args, runs)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
