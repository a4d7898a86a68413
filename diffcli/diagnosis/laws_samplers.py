"""Laws of the samplers, on densities whose ODE and SDE are known."""

import inspect
import math

import numpy as np
import torch

from diffcli.diagnosis.law import Claim, apart, law
from diffcli.diagnosis.laws_cases import at, gaussian, mixture, normal, sdes, usual
from diffcli.diffusion import samplers
from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Karras, UniformLam
from diffcli.diffusion.samplers import DDIM, RK45, Ancestral, FixedGrid, sample

LAWS: list[Claim] = []
ETA = 0.7  # of a family of SDEs with the same marginals, 0 its ODE and 1 the reverse SDE
STEPS = {"DPMTaylor": (10, 20)}  # whose evaluations are derivatives of the model too, and take long
USUAL_STEPS = (60, 120)
FLOOR = 1e-6  # of errors, below which the reference's own are seen


def no_noise(counter):
    raise RuntimeError("a sampler of the probability-flow ODE asks for noise")


def walks(kind: str) -> dict[str, FixedGrid]:
    """The samplers of this kind that follow the marginals step by step, as they are without settings, by name."""
    found = {}
    for name in samplers.__all__:
        made = getattr(samplers, name)
        if not (isinstance(made, type) and issubclass(made, FixedGrid)) or inspect.isabstract(made):
            continue
        needed = [p for p in inspect.signature(made).parameters.values() if p.default is p.empty]
        sampler = None if needed else made()
        if name == "EDMChurn":  # whose order is seen once the noise of a step no longer meets its limit
            sampler = made(s_churn=10.0)
        if sampler is not None and sampler.kind == kind and sampler.order is not None:
            found[name] = sampler
    return found


@law(
    LAWS,
    "probability-flow map of a Gaussian",
    "x_s = m_s + Σ_s^½ Σ_t^−½ (x_t − m_t)",
    "closed form of the linear ODE",
    1e-5,
)
def gaussian_map(device, worst):
    of = gaussian(3, device)

    def root(sde, t, power):  # of the covariance at t
        return (of.axes[0] * (sde.alpha(t) ** 2 * of.variances[0] + sde.sigma(t) ** 2) ** power) @ of.axes[0].T

    for name, sde in usual().items():
        ends = UniformLam()(sde, 1)
        t, s = ends
        x = sde.prior_std * normal(0, 8, 3).to(device)
        truth = sde.alpha(s) * of.means[0] + (x - sde.alpha(t) * of.means[0]) @ (root(sde, t, -0.5) @ root(sde, s, 0.5))
        worst.see(apart(sample(Exact(sde, of), RK45(1e-7), x, ends, no_noise).x, truth), name)


@law(
    LAWS,
    "orders of convergence",
    "error(2N steps) = 2^−p error(N) on the exact mixture: least p − slope",
    "Hairer, Nørsett & Wanner 1993; the samplers' papers",
    0.4,
)
def orders(device, worst):
    of = mixture(2, device)
    for name in ("VP, Linear", "VE, Geometric"):
        sde = sdes()[name]
        model, ends = Exact(sde, of), UniformLam()(sde, 1)
        x, _ = at(sde, of, ends[:1].to(device), 8)
        truth = sample(model, RK45(1e-9), x, ends, no_noise).x
        for sampler, made in walks("ode").items():
            steps = STEPS.get(sampler, USUAL_STEPS)
            errors = [
                (sample(model, made, x, UniformLam()(sde, n), no_noise, "stop").x - truth).norm(dim=1) for n in steps
            ]
            told = (errors[0] > FLOOR) & (errors[1] > FLOOR)
            if told.sum() < 3:
                worst.see(errors[1].max() - 100 * FLOOR, f"{sampler} on {name}")
                continue
            slope = torch.log2(errors[0][told] / errors[1][told]).median().item()
            least = 2 if made.declared_for else made.order
            worst.see(least - slope, f"{sampler} on {name}: order {made.order}, slope {slope:.2f}")
            # one that converges to something else has an order too
            worst.see(errors[1].median() - {1: 0.3, 2: 0.03}.get(least, 0.005), f"{sampler} on {name}: its limit")


class LastNoise:
    """A quadrature of the noise of the last of `steps` steps, of two draws, and none before: rows are nodes."""

    def __init__(self, steps: int, device: torch.device, nodes: int = 7):
        z, w = np.polynomial.hermite_e.hermegauss(nodes)
        z = torch.cartesian_prod(*[torch.from_numpy(z)] * 2).to(device)
        self.w = torch.cartesian_prod(*[torch.from_numpy(w / w.sum())] * 2).prod(1).to(device)
        self.zero = torch.zeros_like(z[:, :1])
        self.last = {steps: z[:, :1], f"{steps}b": z[:, 1:]}

    def __call__(self, counter):
        return self.last.get(counter, self.zero)


@law(
    LAWS,
    "a tiny step of the SDE samplers",
    "E Δx/h → f x − ½(1 + η²) g² s,  E Δx²/h → η² g²,  E Δx⁴/h² → 3 η⁴ g⁴",
    "Kramers–Moyal; Song et al. 2021, eq. 6; Karras et al. 2022, eq. 6",
    1e-3,
)
def tiny_steps(device, worst):
    of = GaussianMixture([0.6, 0.4], [[0.8], [-1.0]], [[[0.1]], [[0.3]]]).to(device)
    h, steps = 1e-6, 4
    noise = LastNoise(steps, device)
    made = {name: (s, 1.0) for name, s in walks("sde").items() if s.evaluations}
    for name, (sampler, _) in list(made.items()):
        if "eta" in inspect.signature(type(sampler)).parameters:
            made[f"{name}, η = {ETA}"] = type(sampler)(eta=ETA), ETA
    made["DDIM, η = 1"] = DDIM(1.0), 1.0
    made.pop("EDMChurn", None)  # whose noise is not a function of the step alone
    for path in ("VP, Linear", "VE, Geometric", "Flow, Logit"):
        sde = sdes()[path]
        model = Exact(sde, of)
        times = torch.tensor([0.5004 - i * h for i in range(steps + 1)], dtype=torch.float64)
        t = times[-2]
        f, g2 = sde.f(t).item(), sde.g2(t).item()
        for name, (sampler, eta) in made.items():
            seen = []
            sample(model, sampler, noise.zero + 0.4, times, noise, "stop", lambda i, x, seen=seen: seen.append(x))
            before, dx = seen[-2], (seen[-1] - seen[-2])[:, 0]
            truth = f * before[0] - 0.5 * (1 + eta**2) * g2 * model.score(before[:1], t)[0]
            where = f"{name} on {path}"
            worst.see(abs((noise.w @ dx).item() / -h - truth.item()) / abs(truth.item()), f"drift of {where}")
            worst.see(abs((noise.w @ dx**2).item() / h / (eta**2 * g2) - 1), f"variance of {where}")
            worst.see(abs((noise.w @ dx**4).item() / h**2 / (3 * eta**4 * g2**2) - 1), f"fourth moment of {where}")


@law(
    LAWS,
    "identities of samplers",
    "DDIM(η = 1) = ancestral,  DDIM(0) = DPM-Solver-1",
    "Song et al. 2020, sec. 4.1; Lu et al. 2022, sec. 4.1",
    1e-8,
)
def identities(device, worst):
    of, z = mixture(2, device), normal(1, 6, 2).to(device)
    for name, sde in sdes().items():
        x, times = sde.prior_std * normal(0, 6, 2).to(device), Karras()(sde, 4)
        for a, b in ((DDIM(1.0), Ancestral()), (DDIM(), samplers.DPM1())):
            ends = [sample(Exact(sde, of), s, x, times, lambda counter: z, "stop").x for s in (a, b)]
            worst.see(apart(*ends), f"{type(b).__name__} on {name}")


@law(
    LAWS,
    "evaluations",
    "NFE = rows that the network was asked for / samples = what the sampler announces",
    "count",
    0.0,
)
def counted(device, worst):
    of, sde = mixture(2, device), sdes()["VP, Linear"]
    x, z = normal(0, 5, 2).to(device), normal(1, 5, 2).to(device)
    for name, sampler in (walks("ode") | walks("sde")).items():
        model = Exact(sde, of)
        nfe = sample(model, sampler, x, UniformLam()(sde, 7), lambda counter: z, "denoise").nfe
        worst.see(abs(evaluations(model) / 5 - nfe.double().mean().item()), f"{name}: counted")
        worst.see(abs(sampler.cost(7) + 1 - nfe.double().mean().item()), f"{name}: announced")


class Units:
    """Noise for rows: 0; the unit vectors of x; those of each draw.  On a first walk it learns their counters."""

    def __init__(self, device: torch.device):
        self.draws, self.device = [], device

    def learn(self, counter):
        self.draws.append(counter)
        return torch.zeros(1, 2, dtype=torch.float64, device=self.device)

    def start(self):
        x = torch.zeros(3 + 2 * len(self.draws), 2, dtype=torch.float64, device=self.device)
        x[1:3] = torch.eye(2)
        return x

    def __call__(self, counter):
        z = torch.zeros_like(self.start())
        row = 3 + 2 * self.draws.index(counter)
        z[row : row + 2] = torch.eye(2)
        return z


def law_error(sampler, model, times, device) -> float:
    """Of the mean and covariance that a walk from the right ones at times[0] has at times[-1]; a walk on one Gaussian is affine
    in its start and all its noise, so its law needs no Monte Carlo."""
    units, of, sde = Units(device), model.mixture, model.sde
    sample(model, sampler, torch.zeros(1, 2, dtype=torch.float64, device=device), times, units.learn, "stop")
    b, *rest = sample(model, sampler, units.start(), times, units, "stop").x
    a = torch.stack(rest) - b

    def truth(t):
        alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
        return alpha * of.means[0], alpha**2 * of.covs[0] + sigma**2 * torch.eye(2, dtype=torch.float64, device=device)

    (mean, cov), (end, end_cov) = map(truth, times[[0, -1]])
    off = mean @ a[:2] + b - end, a[:2].T @ cov @ a[:2] + a[2:].T @ a[2:] - end_cov
    return sum(o.norm().item() for o in off)


@law(
    LAWS,
    "law of the SDE samplers",
    "mean and covariance of samples of one Gaussian, without Monte Carlo: least p − slope, p the weak order",
    "Kloeden & Platen 1992, sec. 9.7",
    0.4,
)
def weak_orders(device, worst):
    model = Exact(sdes()["VP, Linear"], gaussian(2, device))
    for name, sampler in walks("sde").items():
        coarse, fine = (law_error(sampler, model, UniformLam()(model.sde, n), device) for n in (40, 80))
        slope = math.log2(coarse / fine)
        worst.see(sampler.order - slope, f"{name}: order {sampler.order}, slope {slope:.2f}")
        worst.see(fine - 0.5, f"{name}: its limit")
