"""Laws of the likelihood, of the variational bound, and of the distance between Gaussians."""

import math

import torch

from diffcli.diagnosis.law import Claim, apart, law
from diffcli.diagnosis.laws_cases import gaussian, mixture, normal, sdes, usual
from diffcli.diffusion.bound import ContinuousBound
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.likelihood import ExactDivergence, Hutchinson, Likelihood
from diffcli.diffusion.likelihood.path_integral import PathIntegral
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.prior import matched_prior
from diffcli.metrics.features.statistics import Moments
from diffcli.metrics.frechet import frechet
from diffcli.randomness import ItemNoise

LAWS: list[Claim] = []


def items(of, device, n: int = 16):
    """n items of a mixture and the set that they are of."""
    x = of.cpu().sample(200, torch.Generator().manual_seed(0))[0]
    of.to(device)
    return x[:n].to(device), TrainingSet(lambda: x, tuple(x.shape[1:]), mixture=of)


@law(
    LAWS,
    "likelihood by the probability-flow ODE",
    "log p₁(x₁) + ∫ div v dt = log p(x₀) of a Gaussian, exact divergence, the prior's moments matched",
    "Song et al. 2021, eq. 39; Chen et al. 2018",
    1e-4,
)
def ode(device, worst):
    of = gaussian(3, device)
    x, data = items(of, device)
    for name, sde in usual().items():
        model = Exact(sde, of)
        likelihood = Likelihood(divergence="exact", solver="rk45", tol=1e-6, prior="moments")
        likelihood.setup(model, data)
        found = likelihood(model, x, ItemNoise(0, range(len(x)), (3,), torch.float64, device))
        truth = model.log_prob(x, torch.tensor(sde.t_min, dtype=torch.float64))
        worst.see((found.log_prob - truth).abs(), name)


@law(LAWS, "random divergence", "mean over all 2^d sign vectors e of eᵀ(∂u/∂x) e = div u", "Hutchinson 1990", 1e-10)
def hutchinson(device, worst):
    d, n = 3, 5
    x, mix = normal(0, n, d).to(device), normal(1, d, d).to(device)

    def field(x):
        return torch.sin(x @ mix) * x.flip(1)

    def one(row):
        return field(row[None])[0]

    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * d).to(device).expand(n, -1, -1)
    truth = torch.stack([torch.autograd.functional.jacobian(one, row).trace() for row in x])
    for divergence, probes in ((ExactDivergence(), None), (Hutchinson(probes=2**d), signs)):
        u, columns = divergence(field, x, probes)
        worst.see(apart(u, field(x)), "the field itself")
        worst.see(apart(columns.mean(1), truth), type(divergence).__name__)
    drawn = ItemNoise(0, range(2000), (d,), torch.float64).signs("probes", 4)
    off = (drawn.unsqueeze(-1) * drawn.unsqueeze(-2)).mean((0, 1)) - torch.eye(d)
    worst.see((drawn.abs() - 1).abs(), "probes are no signs")
    worst.see(off.abs().max() - 5 / math.sqrt(8000), "covariance of the probes")


@law(
    LAWS,
    "variational bound",
    "KL(q(x₁|x₀) ‖ prior) + ∫ E‖ε − ε_θ‖² dλ + reconstruction = −log p(x₀) for an exact score: in standard errors",
    "Kingma et al. 2021, sec. 4; Song et al. 2021 (ML training), thm. 3",
    5.0,
)
def bound(device, worst):
    of = gaussian(2, device)
    x, data = items(of, device, 64)
    for name in ("VP, Linear", "VE, Geometric", "Flow, Logit"):
        sde = sdes()[name]
        model, elbo = Exact(sde, of), ContinuousBound(64)
        elbo.setup(model, matched_prior(model, data))
        found = elbo(model, x, ItemNoise(0, range(len(x)), (2,), torch.float64, device))
        se = found.std_err.square().sum().sqrt() / len(x)
        worst.see((found.value + of.log_prob(x)).mean().abs() / se, name)
        worst.see(5 * se / 0.3, f"{name}: its standard error")  # beyond 0.3 nats it would hide what is wrong


@law(
    LAWS,
    "density from the score alone",
    "∫₀¹ s(r + u (x − r))·(x − r) du = log p(x) − log p(r), the same along two paths, normalised on a grid",
    "fundamental theorem of calculus",
    1e-4,
)
def path_integral(device, worst):
    of = mixture(2, device)
    x, data = items(of, device)
    for name in ("VP, Linear", "VE, Geometric", "Flow, Logit"):
        sde = sdes()[name]
        model, way = Exact(sde, of), PathIntegral(t=0.3, grid=64)
        way.setup(model, data)
        found = way(model, x, None)
        truth = of.log_prob(x, 1.0, torch.exp(-sde.lam(torch.tensor(0.3, dtype=torch.float64))))
        worst.see((found.log_prob - truth).abs(), name)
        worst.see(found.path_gap, f"two paths on {name}")


@law(LAWS, "Fréchet distance", "‖m − n‖² + Σ (√a − √b)² of Gaussians with common axes", "Dowson & Landau 1982", 1e-9)
def frechet_distance(device, worst):
    d, n = 6, 100
    axes = torch.linalg.qr(normal(0, d, d)).Q
    a, b = (normal(k, d).square() + 0.1 for k in (1, 2))
    a[0] = 0.0  # a feature that does not vary
    m, k = normal(3, d), normal(4, d)
    of = [Moments(n, mean, (n - 1) * (axes * v) @ axes.T) for mean, v in ((m, a), (k, b))]
    truth = ((m - k).square().sum() + (a.sqrt() - b.sqrt()).square().sum()).item()
    worst.see(abs(frechet(*of) / truth - 1), "two Gaussians")
    worst.see(abs(frechet(of[1], of[1])), "a Gaussian and itself")
    x = normal(5, 50, d)
    whole, parts = Moments.of(x), Moments.of(x[:20]).merge(Moments.of(x[20:]))
    worst.see(apart(parts.mean, x.mean(0)), "merged mean")
    worst.see(apart(parts.cov, torch.cov(x.T)), "merged covariance")
    worst.see(apart(whole.cov, torch.cov(x.T)), "covariance")
