"""The samplers of diffusers, k-diffusion and azula, each as a function of a problem that ours is given too.

    pip install -c constraints.txt '.[peers]' && pip install --no-deps k-diffusion==0.1.1.post1

k-diffusion is installed without what it depends on: it wants numpy < 2 for its networks, and of the package only
`k_diffusion.sampling` is read here.
"""

import importlib.util
import itertools
import logging
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser


@dataclass
class Problem:
    """A denoiser, x at times[0] and decreasing times; `calls` counts the evaluations, on whichever clock they are asked for."""

    denoiser: Denoiser
    x: Tensor
    times: Tensor
    calls: int = 0

    def noise(self, counter: int) -> Tensor:
        """Standard normal, the same for everybody: that of the step into times[counter]."""
        generator = torch.Generator().manual_seed(counter)
        return torch.randn(self.x.shape, dtype=self.x.dtype, generator=generator)

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(x, t)

    @property
    def sigmas(self) -> Tensor:
        """sigma/alpha: the noise level of y = x/alpha, on which k-diffusion and diffusers work."""
        return torch.exp(-self.denoiser.sde.lam(self.times))

    @property
    def y(self) -> Tensor:
        return self.x / self.denoiser.sde.alpha(self.times[0])

    def x0_of_y(self, y: Tensor, sigma: Tensor) -> Tensor:
        t = self.denoiser.sde.time(-torch.log(sigma.double().reshape(-1)[0]))
        return self.x0(self.denoiser.sde.alpha(t) * y, t)


@dataclass(frozen=True)
class Peer:
    """`run(problem)` is y at the last time."""

    name: str
    run: Callable[[Problem], Tensor]
    evaluations: int = 1  # a step
    noisy: bool = False  # it adds noise, so it is compared with its equal alone

    def steps(self, nfe: int) -> int:
        return max(1, nfe // self.evaluations)


def import_k_diffusion() -> types.ModuleType:
    """k_diffusion.sampling, past the package's __init__, which imports networks and metrics with requirements of their own."""
    if "k_diffusion" not in sys.modules:
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion() -> list[Peer]:
    """k-diffusion; what adds noise is run without (eta = 0), and with the problem's (eta = 1)."""
    sampling = import_k_diffusion()

    def run(name: str, problem: Problem, **settings) -> Tensor:
        return getattr(sampling, f"sample_{name}")(problem.x0_of_y, problem.y, problem.sigmas, disable=True, **settings)

    def noisy(name: str, problem: Problem, **settings) -> Tensor:
        counter = itertools.count(1)
        return run(name, problem, eta=1.0, noise_sampler=lambda *_: problem.noise(next(counter)), **settings)

    def fast(problem: Problem) -> Tensor:
        low, high, n = problem.sigmas[-1].item(), problem.sigmas[0].item(), len(problem.times) - 1
        return sampling.sample_dpm_fast(problem.x0_of_y, problem.y, low, high, n, disable=True)

    silent = dict(eta=0.0, noise_sampler=lambda *_: 0.0)
    return [
        Peer("k-diffusion euler", partial(run, "euler")),
        Peer("k-diffusion heun", partial(run, "heun"), 2),
        Peer("k-diffusion dpm_2", partial(run, "dpm_2"), 2),
        *(Peer(f"k-diffusion lms {n}", partial(run, "lms", order=n)) for n in (2, 3, 4)),
        Peer("k-diffusion dpmpp_2s", partial(run, "dpmpp_2s_ancestral", **silent), 2),
        Peer("k-diffusion dpmpp_sde", partial(run, "dpmpp_sde", **silent), 2),
        Peer("k-diffusion dpmpp_2m", partial(run, "dpmpp_2m")),
        Peer("k-diffusion dpmpp_2m_sde midpoint", partial(run, "dpmpp_2m_sde", **silent)),
        Peer("k-diffusion dpmpp_2m_sde heun", partial(run, "dpmpp_2m_sde", solver_type="heun", **silent)),
        Peer("k-diffusion dpmpp_3m_sde", partial(run, "dpmpp_3m_sde", **silent)),
        Peer("k-diffusion dpm_fast", fast),  # takes the ends of the times alone
        Peer("k-diffusion euler_ancestral, noise", partial(noisy, "euler_ancestral"), noisy=True),
        Peer("k-diffusion dpmpp_2m_sde midpoint, noise", partial(noisy, "dpmpp_2m_sde"), noisy=True),
        Peer("k-diffusion dpmpp_2m_sde heun, noise", partial(noisy, "dpmpp_2m_sde", solver_type="heun"), noisy=True),
        Peer("k-diffusion dpmpp_3m_sde, noise", partial(noisy, "dpmpp_3m_sde"), noisy=True),
    ]


def azula() -> list[Peer]:
    """azula, on the SDE's own alpha and sigma, at our times."""
    from azula import sample

    class Wrapped(torch.nn.Module):
        def __init__(self, problem: Problem):
            super().__init__()
            self.problem = problem

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.problem.denoiser.sde.alpha(t), self.problem.denoiser.sde.sigma(t)

        def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
            return SimpleNamespace(mean=self.problem.x0(x, t))

    def run(name: str, problem: Problem, **settings) -> Tensor:
        at_our_times = type(name, (getattr(sample, name),), {"timesteps": problem.times})
        x = at_our_times(Wrapped(problem), silent=True, **settings)(problem.x)
        return x / problem.denoiser.sde.alpha(problem.times[-1])

    multistep = [
        Peer(f"azula {short} {n}", partial(run, f"{short}Sampler", order=n))
        for short in ("zAB", "vAB", "zEAB", "xEAB", "REAB")
        for n in (2, 3, 4)
    ]
    return [
        Peer("azula DDIM", partial(run, "DDIMSampler")),
        Peer("azula Euler", partial(run, "EulerSampler")),
        Peer("azula Heun", partial(run, "HeunSampler"), 2),
        *multistep,
    ]


def diffusers() -> list[Peer]:
    """The schedulers of diffusers that work on sigmas, which are set to ours instead of those of 1000 integer timesteps."""
    import diffusers as d

    logging.getLogger("diffusers").setLevel(logging.ERROR)  # they warn of a scaling that is 1 here
    warnings.filterwarnings("ignore", module="diffusers")  # and of algorithms that they mean to drop

    def run(make: Callable, edm: bool, repeats: int, problem: Problem) -> Tensor:
        """edm: its state is y, else the VP one, y/sqrt(1 + sigma^2).  repeats: calls a step, each with a sigma of its own."""
        scheduler, sigmas = make(), problem.sigmas
        scheduler.set_timesteps(len(sigmas) - 1)
        levels = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(repeats)])
        scheduler.sigmas, scheduler.timesteps = levels, torch.arange(len(levels) - 1, dtype=torch.float64)
        y = problem.y
        for i, t in enumerate(scheduler.timesteps):
            sigma = levels[i]
            eps = (y - problem.x0_of_y(y, sigma)) / sigma
            state = y if edm else y / torch.sqrt(1 + sigma**2)
            after = scheduler.step(eps, t, state).prev_sample.double()
            y = after if edm else after * torch.sqrt(1 + levels[i + 1] ** 2)
        return y

    def vp(name: str, make: Callable, **settings) -> Peer:
        stop = {"final_sigmas_type": "sigma_min"}
        return Peer(f"diffusers {name}", partial(run, partial(make, **stop, **settings), False, 1))

    multistep, single = d.DPMSolverMultistepScheduler, d.DPMSolverSinglestepScheduler
    return [
        Peer("diffusers Euler", partial(run, d.EulerDiscreteScheduler, True, 1)),
        Peer("diffusers Heun", partial(run, d.HeunDiscreteScheduler, True, 2), 2),
        Peer("diffusers LMS", partial(run, d.LMSDiscreteScheduler, True, 1)),
        *(
            vp(
                f"DPMSolverMultistep {kind} {n}{end}",
                multistep,
                algorithm_type=kind,
                solver_order=n,
                lower_order_final=low,
            )
            for kind in ("dpmsolver", "dpmsolver++")
            for n in (2, 3)
            for low, end in ((False, ""), (True, " lower_order_final"))
        ),
        *(
            vp(f"DPMSolverSinglestep {kind} {n}", single, algorithm_type=kind, solver_order=n)
            for kind in ("dpmsolver", "dpmsolver++")
            for n in (2, 3)
        ),
        *(
            vp(f"UniPC {n} {kind} {form}", d.UniPCMultistepScheduler, solver_order=n, solver_type=kind, predict_x0=x0)
            for n in (2, 3)
            for kind in ("bh1", "bh2")
            for x0, form in ((True, "x0"), (False, "eps"))
        ),
        *(vp(f"DEIS {n}", deis_of(d), solver_order=n) for n in (2, 3)),
    ]


def deis_of(d) -> Callable:
    """DEIS knows no final_sigmas_type: it always stops at the last sigma it is given."""
    return lambda final_sigmas_type, **settings: d.DEISMultistepScheduler(**settings)


def peers() -> list[Peer]:
    return [*k_diffusion(), *azula(), *diffusers()]
