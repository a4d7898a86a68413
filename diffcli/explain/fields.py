"""Densities and scores to look at: the exact or estimated law of the data, the levels shown, the error of a learned score."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.kernel_density import GaussianKDE
from diffcli.diffusion.sde import SDE

CENTRES = 1000  # items that a kernel density estimate is made of
ROWS = 2000  # evaluated at a time
LEVELS = (0.1, 0.4, 1.2, 4.0)  # sigma/alpha of the levels shown, in standard deviations of the data


def bandwidth(x: Tensor) -> float:
    """The bandwidth for items x (N, d) under which each is likeliest given the others, at most that of Silverman's rule.

    Of Gaussian kernels `h = s u`, u from 1/100 to 1, `s = std (4 / ((d + 2) N))^(1/(d + 4))`, which fits one Gaussian and
    blurs what has parts.  Silverman 1986, eq. 4.14 and sec. 3.4.4 (likelihood cross-validation).
    """
    n, d = x.shape
    rule = x.double().var(0).mean().sqrt().item() * (4 / ((d + 2) * n)) ** (1 / (d + 4))
    square = torch.cdist(x, x).square().fill_diagonal_(math.inf)
    tried = rule * torch.logspace(0, -2, 25, dtype=torch.float64)
    fit = [(torch.logsumexp(-square / (2 * h**2), dim=1) - d * h.log()).mean().item() for h in tried]
    return tried[max(range(len(fit)), key=fit.__getitem__)].item()


def law_of(sde: SDE, x: Tensor, mixture: GaussianMixture | None) -> tuple[Exact, str]:
    """The law of the data at every level, and its name: exact where it is known, else a KDE of the items x (N, *S)."""
    if mixture is not None:
        return Exact(sde, mixture), "exact"
    x = x[:: max(1, -(-len(x) // CENTRES))].flatten(1).double()
    h = bandwidth(x)
    return Exact(sde, GaussianKDE(x, h)), f"KDE of {len(x):,} items, h = {h:.2g}"  # which reads as a mixture does


def shown_times(sde: SDE, std: float) -> Tensor:
    """Four times, increasing, at which noise and data compare as in LEVELS; even in lam where the path has no such range."""
    ends = sde.lam(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    lam = -torch.log(std * torch.tensor(LEVELS, dtype=torch.float64))
    if not ends[1] <= lam[-1] < lam[0] <= ends[0]:
        lam = ends[0] + (ends[1] - ends[0]) * torch.linspace(0.1, 0.95, 4, dtype=torch.float64)
    return sde.time(lam)


def in_rows(fn, x: Tensor, rows: int = ROWS) -> Tensor:
    """fn(x) computed some rows at a time."""
    return torch.cat([fn(part) for part in x.split(rows)])


@torch.no_grad()
def score_error(denoiser: Denoiser, truth: Exact, t: Tensor, n: int, generator: torch.Generator) -> float:
    """`sqrt(E ||s_theta - s||^2 / E ||s||^2)` over n draws x_t ~ p_t of the exact law, at the time t ()."""
    x0, _ = truth.mixture.sample(n, generator)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    xt = denoiser.sde.perturb(x0, t, eps)
    exact = in_rows(lambda x: truth.score(x, t), xt)
    found = in_rows(lambda x: denoiser.score(x, t).double(), xt)
    return math.sqrt(((found - exact).square().sum() / exact.square().sum()).item())


def box(sde: SDE, x0: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """Centre (2,) and half-width of a square that holds nearly all of x_t, for data x0 (N, 2)."""
    low, high = torch.quantile(x0.double(), torch.tensor([0.002, 0.998], dtype=torch.float64), dim=0)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha * (low + high) / 2, (alpha * (high - low).max() / 2 * 1.15 + 2.2 * sigma).item()


def lattice(centre: Tensor, half: float, n: int) -> Tensor:
    """n x n points of a square, (n * n, 2), rows of equal x2 from the lowest."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return centre + torch.stack([x.flatten(), y.flatten()], dim=1)


@torch.no_grad()
def reverse_path(denoiser: Denoiser, sampler, start: Tensor, times: Tensor, noise) -> Tensor:
    """x (T, N, *S) along the walk of a sampler from x = start at times[0], at the decreasing times (T,)."""
    x = [start]
    sampler.walk(denoiser, start, times, noise, lambda i, xt: x.append(xt))
    return torch.stack(x)
