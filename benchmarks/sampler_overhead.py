"""Microseconds that a sampler adds to an evaluation of the network: ours, diffusers, k-diffusion and azula in one run.

    python benchmarks/sampler_overhead.py

The network returns zeros of its input's shape, 16 x 3 x 32 x 32 in float32, on one thread.  All walk the same steps in turn, again
and again; the least and the median over the rounds are of whole walks, divided by the evaluations.  "arithmetic" is
`x = a x + b f` in place: what no sampler can do without.  Theirs is asked as it is used, with a plain function as the network.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from sampler_peers import import_k_diffusion
from torch import Tensor, nn

from diffcli.diffusion.grid import Scales, UniformLam
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import DDIM, AdamsMoulton, Deis, DPMpp2M, Euler, Heun, Sampler, UniPC, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP

SHAPE = (16, 3, 32, 32)


class Zeros(nn.Module):
    """The network: it has nothing to compute."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(x)


def ours(sampler: Sampler, steps: int, grid=UniformLam) -> Callable[[Tensor], None]:
    model = Eps(VP(Linear()), Zeros())
    times = grid()(model.sde, steps // sampler.evaluations)
    return lambda x: sample(model, sampler, x, times, None, last="stop")


def k_diffusion(name: str, steps: int) -> Callable[[Tensor], None]:
    walk = getattr(import_k_diffusion(), f"sample_{name}")
    sigmas = torch.logspace(2, -2, steps + 1)
    return lambda x: walk(lambda y, sigma: torch.zeros_like(y), x, sigmas, disable=True)


def azula(name: str, steps: int) -> Callable[[Tensor], None]:
    from azula import sample as walks
    from azula.noise import VPSchedule

    class Zero(nn.Module):
        schedule = VPSchedule()

        def forward(self, x, t):
            return SimpleNamespace(mean=torch.zeros_like(x))

    steps = steps // 2 if name == "Heun" else steps
    return getattr(walks, f"{name}Sampler")(Zero(), steps=steps, silent=True)


def diffusers(name: str, steps: int) -> Callable[[Tensor], None]:
    import diffusers as d

    def walk(x: Tensor) -> None:
        scheduler = getattr(d, f"{name}Scheduler")()
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, scheduler.scale_model_input(x, t)).prev_sample

    return walk


def arithmetic(steps: int) -> Callable[[Tensor], None]:
    def walk(x: Tensor) -> None:
        x = x.clone()
        for _ in range(steps):
            x.mul_(0.9).add_(torch.zeros_like(x), alpha=0.1)

    return walk


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.evaluations
    walks = {
        "arithmetic": arithmetic(n),
        "ours euler": ours(Euler(), n),
        "ours ddim": ours(DDIM(), n),
        "ours heun": ours(Heun(), n),
        "ours dpmpp_2m": ours(DPMpp2M(), n),
        "ours deis": ours(Deis(), n),
        "ours unipc": ours(UniPC(), n),
        "ours abm": ours(AdamsMoulton(), n, Scales),
        "diffusers Euler": diffusers("EulerDiscrete", n),
        "diffusers DDIM": diffusers("DDIM", n),
        "diffusers DPMSolverMultistep": diffusers("DPMSolverMultistep", n),
        "diffusers UniPC": diffusers("UniPCMultistep", n),
        "k-diffusion euler": k_diffusion("euler", n),
        "k-diffusion dpmpp_2m": k_diffusion("dpmpp_2m", n),
        "azula DDIM": azula("DDIM", n),
        "azula Heun": azula("Heun", n),
        "azula zEAB": azula("zEAB", n),
    }
    x, took = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), {name: [] for name in walks}
    for walk in walks.values():
        walk(x)
    for _ in range(options.rounds):
        for name, walk in walks.items():
            begun = time.perf_counter()
            walk(x)
            took[name].append((time.perf_counter() - begun) / n * 1e6)
    print("| sampler | least, µs an evaluation | median |\n| --- | --- | --- |")
    for name, seconds in took.items():
        print(f"| {name} | {min(seconds):.0f} | {statistics.median(seconds):.0f} |")


if __name__ == "__main__":
    main()
