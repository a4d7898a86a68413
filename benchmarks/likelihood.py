"""Log-likelihoods beside score_sde's method and torchdiffeq: evaluations, and what is left of the error in bits/dim.

    python benchmarks/likelihood.py                                   # exact mixtures, seconds to minutes
    python benchmarks/likelihood.py --ckpt outputs/…/last.ckpt --data-root DATA [-n 12] [--probes 2]
    python benchmarks/likelihood.py --probes-table [--ckpt … --data-root DATA] [-n 12]       # what the probes leave, a minute

With --probes-table instead: the root-mean-square error of 8 products of a likelihood against the exact divergence (mixtures) or
against 64 probes in blocks (a network), for every design of the probes, and its square over that of fixed independent signs;
and the exact divergence in chunks against a loop.

Every solver gets the same items, the same probes and the same model in float64, and the same density at t_max; the error is that
against the adaptive solver in lam at 1e-7 (mixtures: exact divergence; --fine changes it for a network).

    score_sde   the method of Song et al. 2021, app. D.2, written from the paper: Runge-Kutta 4(5) of scipy in t on the joint
                batch, rtol = atol = 1e-5, one Hutchinson probe in the paper, here those of everybody (--probes 1 is the paper's)
    torchdiffeq dopri5 in t on the joint batch, rtol = atol = 1e-5
    diffcli     exponential at a quarter of torchdiffeq's evaluations, and as it comes; rk45 and rk4 in lam

Prints a Markdown table: mean evaluations an item, bits/dim less the reference (mean over items, and largest), seconds.  Exits
with 1 where the exponential solver at a quarter of the evaluations is off by more than 0.005 bits/dim in the mean.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from diffcli.checkpoint import load_denoiser
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.likelihood.divergence import Divergence
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.prior import StandardPrior
from diffcli.diffusion.schedule import Geometric, Linear, Logit
from diffcli.diffusion.sde import VE, VP, Flow, SubVP
from diffcli.randomness import ItemNoise


@dataclass
class Problem:
    """Items at t_min, how they are measured, and what is known of the data."""

    name: str
    denoiser: Denoiser
    x: Tensor
    settings: dict
    data: TrainingSet
    fine: float = 1e-7

    def noise(self) -> ItemNoise:
        return ItemNoise(0, range(len(self.x)), self.x.shape[1:], torch.float64)

    def ours(self, **solver) -> tuple[Tensor, float]:
        """log p (B,) and the mean evaluations of an item."""
        likelihood = Likelihood(**self.settings, **solver)
        likelihood.setup(self.denoiser, self.data)
        found = likelihood(self.denoiser, self.x, self.noise())
        return found.log_prob, found.nfe.double().mean().item()

    def divergence(self) -> Divergence:
        return Likelihood(**self.settings).divergence


class InTime:
    """The probability-flow ODE of the joint batch in t, as one flat state (x, log-density), counted."""

    def __init__(self, problem: Problem):
        self.problem, self.divergence, self.calls = problem, problem.divergence(), 0
        self.probes = self.divergence.probes(problem.x, problem.noise())

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        self.calls += 1
        sde, x = self.problem.denoiser.sde, state[: self.problem.x.numel()].view_as(self.problem.x)
        t = t.clamp(sde.t_min, sde.t_max)  # torchdiffeq steps beyond the end and interpolates
        v, div = self.divergence(lambda x: self.problem.denoiser.velocity(x, t), x, self.probes)
        return torch.cat([v.flatten(), div.mean(1)])

    def start(self) -> Tensor:
        return torch.cat([self.problem.x.flatten(), torch.zeros(len(self.problem.x), dtype=torch.float64)])

    def finish(self, state: Tensor) -> tuple[Tensor, float]:
        size, sde = self.problem.x.numel(), self.problem.denoiser.sde
        return StandardPrior(sde).log_prob(state[:size].view_as(self.problem.x)) + state[size:], float(self.calls)


def score_sde(problem: Problem) -> tuple[Tensor, float]:
    sde, field = problem.denoiser.sde, InTime(problem)

    def fn(t: float, y: np.ndarray) -> np.ndarray:
        return field(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    found = solve_ivp(fn, (sde.t_min, sde.t_max), field.start().numpy(), method="RK45", rtol=1e-5, atol=1e-5)
    return field.finish(torch.from_numpy(found.y[:, -1]))


def dopri5(problem: Problem) -> tuple[Tensor, float]:
    sde, field = problem.denoiser.sde, InTime(problem)
    times = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    return field.finish(odeint(field, field.start(), times, rtol=1e-5, atol=1e-5, method="dopri5")[-1])


def mixture(d: int, k: int = 3) -> GaussianMixture:
    """k components with full covariances."""
    generator = torch.Generator().manual_seed(d)
    a = torch.randn(k, d, d, dtype=torch.float64, generator=generator)
    covs = a @ a.mT / d * 0.2 + 0.1 * torch.eye(d, dtype=torch.float64)
    means = torch.randn(k, d, dtype=torch.float64, generator=generator)
    return GaussianMixture(torch.tensor([1 / 6, 1 / 3, 1 / 2]), means, covs)


def mixtures(n: int):
    for name, sde in (
        ("VP linear", VP(Linear(), 1e-5)),
        ("sub-VP linear", SubVP(Linear(), 1e-5)),
        ("VE geometric", VE(Geometric())),
        ("flow", Flow(Logit(), 1e-5)),
    ):
        for d in (2, 16, 64):
            model = Exact(sde, mixture(d))
            generator = torch.Generator().manual_seed(0)
            x0, _ = model.mixture.sample(n, generator)
            eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
            x = sde.perturb(x0, torch.tensor(sde.t_min, dtype=torch.float64), eps)
            yield Problem(f"{name}, d = {d}", model, x, dict(divergence="exact"), TrainingSet(lambda x=x: x, (d,)))


def digits(ckpt: str, root: str, n: int, probes: int, fine: float) -> Problem:
    """Test digits of MNIST, dequantised, under a trained network in float64."""
    from torchvision.datasets import MNIST

    model = load_denoiser(ckpt).double().eval().requires_grad_(False)
    level = MNIST(root, train=False).data[:n, None].double()
    u = ItemNoise(0, range(n), level.shape[1:], torch.float64).uniform("dequantize")
    x = (level + u) / 128 - 1
    data = TrainingSet(lambda: x, tuple(x.shape[1:]), levels=256)
    # fixed: only then do all solvers integrate the same function
    return Problem(ckpt, model, x, dict(divergence="hutchinson", probes=probes, along="fixed"), data, fine)


DESIGNS = {
    "fixed signs": dict(along="fixed"),
    "fixed signs and their antithetic ones (4 + 4)": dict(along="fixed", probes=4),  # e and -e have one product
    "fixed, orthogonal over neighbours": dict(along="fixed", noise="orthogonal"),
    "fixed, control variate of the moments": dict(along="fixed", control="moments"),
    "fresh at each reading": dict(along="fresh"),
    "fresh, orthogonal over neighbours": dict(along="fresh", noise="orthogonal"),
    "in blocks of 8 (the default)": dict(along="blocks"),
    "in blocks, control variate": dict(along="blocks", control="moments"),
}


def probes_table(problem: Problem, truth: Tensor) -> None:
    """The problem's rows: what every design of 8 products leaves, and what its own error bar says."""
    unit, first = problem.x[0].numel() * math.log(2), None
    for name, design in DESIGNS.items():
        likelihood = Likelihood(**(dict(divergence="hutchinson", probes=8, tol=1e9) | design))
        likelihood.setup(problem.denoiser, problem.data)
        found = likelihood(problem.denoiser, problem.x, problem.noise())
        square = ((found.log_prob - truth) / unit).square().mean().item()
        said = (found.std_err / unit).square().mean().sqrt().item()
        first = square if first is None else first
        print(f"| {problem.name} | {name} | {square**0.5:.1e} | {said:.1e} | {square / first:.3f} |", flush=True)


def exact_table(problem: Problem) -> None:
    """Milliseconds a product and item of the exact divergence, one by one and in chunks, each the best of 3."""
    x, t = problem.x[:1], torch.tensor(0.5, dtype=torch.float64)
    for name, memory in (("loop", 1.0), ("chunks", 2.0**30)):
        divergence, best = Likelihood(divergence="exact").divergence, math.inf
        divergence.memory = memory
        for _ in range(3):
            begun = time.monotonic()
            divergence(lambda x: problem.denoiser.velocity(x, t), x, None)
            best = min(best, time.monotonic() - begun)
        print(f"| {problem.name} | exact, {name} | {1e3 * best / x.numel():.3f} ms a product | | |", flush=True)


def compare(problem: Problem) -> float:
    """The problem's part of the table; the mean error at a quarter of the evaluations."""
    unit = problem.x[0].numel() * math.log(2)
    truth, nfe = problem.ours(solver="rk45", tol=problem.fine)
    print(f"| {problem.name} | rk45 in lam, {problem.fine:g} | {nfe:.0f} | the reference | | |", flush=True)

    def row(name: str, run) -> tuple[float, float]:
        begun = time.monotonic()
        log_prob, nfe = run()
        error = (truth - log_prob) / unit
        seconds = time.monotonic() - begun
        print(f"| | {name} | {nfe:.0f} | {error.mean():+.1e} | {error.abs().max():.1e} | {seconds:.1f} |", flush=True)
        return nfe, error.mean().item()

    row("score_sde, 1e-5", lambda: score_sde(problem))
    calls, _ = row("torchdiffeq dopri5, 1e-5", lambda: dopri5(problem))
    steps = max(4, int(calls // 4) - 2)
    _, quarter = row("exponential, a quarter", lambda: problem.ours(solver="exponential", steps=steps, tol=1e9))
    row("exponential", lambda: problem.ours(solver="exponential"))
    row("rk45 in lam, 1e-4", lambda: problem.ours(solver="rk45", tol=1e-4))
    row("rk4 in lam", lambda: problem.ours(solver="rk4", steps=16))
    return quarter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ckpt", help="a trained model of MNIST")
    parser.add_argument("--data-root", help="where MNIST lies")
    parser.add_argument("-n", type=int, default=12, help="items")
    parser.add_argument("--probes", type=int, default=2, help="of Hutchinson's, with --ckpt")
    parser.add_argument("--fine", type=float, default=1e-6, help="tolerance of the reference, with --ckpt")
    parser.add_argument("--probes-table", action="store_true", help="what the probes leave, in place of the solvers")
    args = parser.parse_args()
    if args.ckpt and not args.data_root:
        parser.error("--ckpt needs --data-root, where MNIST lies")
    torch.set_num_threads(1)
    chosen = mixtures(args.n)
    if args.ckpt:
        chosen = [digits(args.ckpt, args.data_root, args.n, args.probes, args.fine)]
    if args.probes_table:
        print("| model | probes | rms error, bits/dim | said | variance over the first |\n|---|---|---|---|---|")
        for problem in chosen:
            fine = dict(divergence="hutchinson", probes=64) if args.ckpt else dict(divergence="exact")
            likelihood = Likelihood(**fine, tol=1e9)
            likelihood.setup(problem.denoiser, problem.data)
            noise = ItemNoise(1, range(len(problem.x)), problem.x.shape[1:], torch.float64)
            probes_table(problem, likelihood(problem.denoiser, problem.x, noise).log_prob)
            exact_table(problem)
        return 0
    print("| model | solver | NFE | bits/dim − reference | largest | s |\n|---|---|---|---|---|---|")
    worst = max(abs(compare(problem)) for problem in chosen)
    print(f"\nat a quarter of dopri5's evaluations the mean is off by at most {worst:.1e} bits/dim")
    return 0 if worst <= 0.005 else 1


if __name__ == "__main__":
    sys.exit(main())
