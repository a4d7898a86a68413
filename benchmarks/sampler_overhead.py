"""Microseconds that a sampler adds to an evaluation of the network: all of ours on a fixed grid, diffusers, k-diffusion and azula.

    python benchmarks/sampler_overhead.py [--quick]                        # half a minute; quick: 8 s

The network returns zeros of its input's shape, 16 x 3 x 32 x 32 in float32, on one thread.  All walk as many steps in turn, again
and again; the least and the median over the rounds are of whole walks, divided by the evaluations.  "arithmetic" is
`x = a x + b f` in place: what no sampler can do without.  Theirs is asked as it is used, with a plain function as the network.
The noise of our stochastic samplers is drawn before; what drawing costs is in the row "noise", a sample of which is a function of
the seed and its number alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
import yaml
from sampler_peers import import_k_diffusion
from torch import Tensor, nn

from diffcli.commands.walk import build_sampler
from diffcli.diffusion.grid import Scales, UniformLam
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import FixedGrid, Sampler, most_steps, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.memory import keep_freed
from diffcli.paths import conf_dir
from diffcli.randomness import ItemNoise

SHAPE = (16, 3, 32, 32)


class Zeros(nn.Module):
    """The network: it has nothing to compute."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(x)


def samplers() -> dict[str, Sampler]:
    """Every sampler of conf/sampler that walks along a grid; `tuned` is some model's own."""
    nodes = {
        path.stem: yaml.safe_load(path.read_text())
        for path in sorted((conf_dir() / "sampler").glob("*.yaml"))
        if path.stem != "tuned"
    }
    built = {name: build_sampler(node) for name, node in nodes.items()}
    return {name: sampler for name, sampler in built.items() if isinstance(sampler, FixedGrid)}


def times_of(name: str, sampler: Sampler, sde, steps: int) -> Tensor:
    if sampler.one_level:
        return torch.full((steps + 1,), sde.t_min, dtype=torch.float64)
    return (Scales() if name == "abm" else UniformLam())(sde, steps)


def ours(name: str, sampler: Sampler, nfe: int) -> tuple[Callable[[Tensor], None], int]:
    """A walk of as many evaluations as fit in nfe, and how many those are."""
    model, z = Eps(VP(Linear()), Zeros()), torch.randn(SHAPE)
    steps = max(1, most_steps(sampler, nfe))
    times = times_of(name, sampler, model.sde, steps)
    return lambda x: sample(model, sampler, x, times, lambda counter: z, last="stop"), sampler.cost(steps)


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


def noise(n: int) -> Callable[[Tensor], None]:
    draw = ItemNoise(0, range(SHAPE[0]), SHAPE[1:])

    def walk(x: Tensor) -> None:
        for i in range(n):
            draw(i)

    return walk


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="8 rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, rounds = options.evaluations, 8 if options.quick else options.rounds
    walks = {"arithmetic": (arithmetic(n), n), "noise": (noise(n), n)}
    walks |= {f"ours {name}": ours(name, sampler, n) for name, sampler in samplers().items()}
    walks |= {
        f"diffusers {name}": (diffusers(name, n), n)
        for name in ("EulerDiscrete", "DDIM", "DPMSolverMultistep", "UniPCMultistep")
    }
    walks |= {f"k-diffusion {name}": (k_diffusion(name, n), n) for name in ("euler", "dpmpp_2m")}
    walks |= {f"azula {name}": (azula(name, n), n) for name in ("DDIM", "Heun", "zEAB")}
    x, took = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), {name: [] for name in walks}
    for walk, _ in walks.values():
        walk(x)
    for _ in range(rounds):
        for name, (walk, evaluations) in walks.items():
            begun = time.perf_counter()
            walk(x)
            took[name].append((time.perf_counter() - begun) / evaluations * 1e6)
    print("| sampler | least, µs an evaluation | median |\n| --- | --- | --- |")
    for name, seconds in took.items():
        print(f"| {name} | {min(seconds):.0f} | {statistics.median(seconds):.0f} |")
    worst = max((statistics.median(s), name) for name, s in took.items() if name.startswith("ours"))
    print(f"\nThe most of ours: {worst[1]}, {worst[0]:.0f} µs.")


if __name__ == "__main__":
    keep_freed()  # for all of them
    main()
