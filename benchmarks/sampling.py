"""Sampling time over (evaluations × the network's own forward pass): every sampler, with and without guidance.

    python benchmarks/sampling.py [--quick] [--threads 2]                          # three minutes; quick: half a minute

The digits' U-Net (conf/network/unet.yaml, 3 x 32 x 32 unless --shape says else), batches of 16, untrained: its time does not
depend on its weights.  In each round one walk of each sampler, with the network's own passes between them, at the batch that the
walk asks for: that of classifier-free guidance is twice as large.  The median over the rounds, of ratios.  "The samples" of a
stochastic sampler include its noise, which is drawn on the CPU for each sample by itself.
"""

import argparse
import statistics
import time

import torch
from sampler_overhead import samplers, times_of
from torch import Tensor

from diffcli.diffusion.guidance import ClassifierFree, Conditioned
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import most_steps, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.memory import keep_freed
from diffcli.networks.unet import UNet
from diffcli.randomness import ItemNoise

BATCH = 16
DERIVATIVES = ("dpm_taylor",)  # an evaluation is one of a derivative too, which takes longer


def seconds(fn, *args, **kwargs) -> float:
    begun = time.perf_counter()
    fn(*args, **kwargs)
    return time.perf_counter() - begun


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32))
    parser.add_argument("--quick", action="store_true", help="3 rounds of 4 samplers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape, nfe, rounds = tuple(options.shape), options.nfe, 3 if options.quick else options.rounds
    model = Eps(VP(Linear()), UNet(shape, classes=10)).eval().requires_grad_(False)
    guided = Conditioned(ClassifierFree(model, 1.0), label=torch.arange(BATCH) % 10)
    chosen = {name: s for name, s in samplers().items() if name not in DERIVATIVES}
    if options.quick:
        chosen = {name: chosen[name] for name in ("ddim", "dpmpp_2m", "abm", "ancestral")}
    x, c = torch.randn(BATCH, *shape), torch.full((2 * BATCH,), 300.0)
    label = torch.arange(2 * BATCH) % 10

    def forward(n: int, batch: int) -> Tensor:
        for _ in range(n):
            out = model.network(x.repeat(batch // BATCH, 1, 1, 1), c[:batch], label[:batch])
        return out

    walks = {name: (model, sampler, 1) for name, sampler in chosen.items()}
    walks |= {f"{name}, cfg": (guided, chosen[name], 2) for name in ("ddim", "dpmpp_2m")}
    forward(3, 2 * BATCH)
    found = {name: [] for name in walks}
    for counter in range(rounds):
        for name, (denoiser, sampler, calls) in walks.items():
            steps = max(1, most_steps(sampler, nfe // calls))
            times = times_of(name, sampler, model.sde, steps)
            noise, took = ItemNoise(counter, range(BATCH), shape), sampler.cost(steps)
            half = seconds(forward, (took + 1) // 2, calls * BATCH)
            walk = seconds(sample, denoiser, sampler, x, times, noise, last="stop")
            half += seconds(forward, took // 2, calls * BATCH)
            found[name].append((walk / half, walk / took / calls))
    print("| sampler | time / (evaluations × forward) | ms an evaluation |\n| --- | --- | --- |")
    for name, pairs in found.items():
        ratio, each = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {ratio:.3f} | {1e3 * each:.1f} |")
    ratios = sorted(statistics.median(r for r, _ in pairs) for pairs in found.values())
    print(f"\nMedian over the samplers {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}.")


if __name__ == "__main__":
    keep_freed()
    main()
