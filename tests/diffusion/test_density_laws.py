"""What the density of the exact mixture satisfies on every SDE, and that three ways of moving samples share it."""

import math

import pytest
import torch
from cases import Shifted, all_paths, build, every_path, f64, mixture_2d, no_noise, noised, normal
from scipy.stats import ks_2samp
from torch import nn

from diffcli.diffusion.density import Residual, asymmetry, continuity, divergence, fokker_planck, score_fpe
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.samplers import DPM2, Ancestral, EulerMaruyama, sample

N = 2000


class Scaled(nn.Module):
    """An SDE whose g^2 is wrong by a factor."""

    def __init__(self, sde, factor: float):
        super().__init__()
        self.sde, self.factor = sde, factor

    def g2(self, t):
        return self.factor * self.sde.g2(t)

    def f(self, t):
        return self.sde.f(t)


def places(sde, n: int = 12):
    """Points under the density at times between the knots of a table, where sigma/alpha >= e^-6: below, the score that is read
    from x0_hat loses the digits that sigma^2 takes (sub-VP's sigma is 1e-6)."""
    first = max(sde.t_min, sde.time(f64(6.0)).item())
    t = first + (sde.t_max - first) * (0.05 + 0.9 * torch.linspace(0, 1, n, dtype=torch.float64)) ** 1.3
    x0, _ = mixture_2d().sample(n, torch.Generator().manual_seed(3))
    return sde.perturb(x0, t, normal(4, n, 2)), t


@all_paths
def test_the_exact_density_satisfies_its_equations(sde):
    model = Exact(sde, mixture_2d())
    x, t = places(sde)
    assert fokker_planck(model.log_prob, sde, x, t).relative.max() < 1e-6
    assert continuity(model.log_prob, model.velocity, x, t).relative.max() < 1e-6
    assert score_fpe(model.score, sde, x, t).relative.max() < 1e-6


@every_path
def test_a_wrong_score_fails_them(sde):
    model, wrong = Exact(sde, mixture_2d()), Shifted(sde, mixture_2d(), 0.1)
    x, t = places(sde)
    found = {
        "shifted, continuity": continuity(model.log_prob, wrong.velocity, x, t),
        "shifted, score": score_fpe(wrong.score, sde, x, t),
        "sign, density": fokker_planck(lambda x, t: -model.log_prob(x, t), sde, x, t),
        "sign, continuity": continuity(
            model.log_prob, lambda x, t: 2 * sde.f(t)[:, None] * x - model.velocity(x, t), x, t
        ),
        "sign, score": score_fpe(lambda x, t: -model.score(x, t), sde, x, t),
        "factor in g^2, density": fokker_planck(model.log_prob, Scaled(sde, 2.0), x, t),
        "factor in g^2, score": score_fpe(model.score, Scaled(sde, 2.0), x, t),
        "shifted density": fokker_planck(
            lambda x, t: model.log_prob(x, t) + 0.1 * torch.sin(x[:, 0] / sde.sigma(t)), sde, x, t
        ),
    }
    # a prior that has been reached stands still, whatever the sign: the median looks at the way there
    assert {name: r.relative.median().item() for name, r in found.items() if not r.relative.median() > 1e-3} == {}


def test_residuals_are_what_they_say():
    """Against closed forms: of a function that solves nothing, and of Brownian motion."""
    x, t = normal(0, 5, 3), torch.linspace(0.2, 0.9, 5, dtype=torch.float64)

    class Heat:  # f = 0, g = 1: p_t = N(0, t I)
        def f(self, t):
            return torch.zeros_like(t)

        def g2(self, t):
            return torch.ones_like(t)

    def log_p(x, t):
        return -0.5 * x.square().sum(1) / t - 1.5 * torch.log(2 * math.pi * t)

    assert fokker_planck(log_p, Heat(), x, t).value.abs().max() < 1e-12
    assert score_fpe(lambda x, t: -x / t[:, None], Heat(), x, t).value.abs().max() < 1e-12
    assert continuity(log_p, lambda x, t: x / (2 * t[:, None]), x, t).value.abs().max() < 1e-12
    # log p = -|x|^2/2 for every t: dp/dt = 0, and half the Laplacian over p is (|x|^2 - d)/2
    still = fokker_planck(lambda x, t: -0.5 * x.square().sum(1) + 0 * t, Heat(), x, t)
    assert torch.allclose(still.value, -(x.square().sum(1) - 3) / 2)
    assert torch.allclose(still.size, (x.square().sum(1) - 3).abs() / 2)
    # s = -x for every t: ds/dt = 0, grad(1/2 (div s + |s|^2)) = x
    assert torch.allclose(score_fpe(lambda x, t: -x + 0 * t[:, None], Heat(), x, t).value, -x)
    u = continuity(lambda x, t: x[:, 0] * t, lambda x, t: x**2, x, t)
    assert torch.allclose(u.value, x[:, 0] + 2 * x.sum(1) + t * x[:, 0] ** 2)


def test_they_take_items_of_any_shape():
    x, t = normal(0, 4, 2, 3), f64(0.5).repeat(4)
    y = x.clone().requires_grad_()
    assert torch.allclose(divergence(y**2, y), 2 * x.flatten(1).sum(1))
    residual = score_fpe(lambda x, t: -x / t.view(-1, 1, 1), Scaled(_OneHalf(), 1.0), x, t)
    assert residual.value.shape == x.shape
    assert residual.relative.shape == (4,)
    assert Residual(f64(3.0, 0.0), f64(6.0, 1.0)).relative.tolist() == [0.5, 0.0]


class _OneHalf:
    def f(self, t):
        return 0 * t

    def g2(self, t):
        return 1 + 0 * t


def test_asymmetry_is_that_of_the_jacobian():
    rotation = f64([1.0, 2.0], [-2.0, 3.0])  # J + J^T = diag(2, 6), J - J^T = 4 off the diagonal
    found = asymmetry(lambda x, t: x @ rotation.T, normal(0, 3, 2), f64(0.5).repeat(3))
    assert torch.allclose(found, torch.full((3,), (32 / 40) ** 0.5, dtype=torch.float64))
    model = Exact(build("vp", "linear"), mixture_2d())
    assert asymmetry(model.score, *places(model.sde)).max() < 1e-10


def times(sde):
    """Five times, decreasing, of which no one lies where the last two of flow's steps would be too long."""
    top = min(sde.t_max, 0.9)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64).flip(0) * top
    if sde.times is not None:  # the training levels nearest to them
        t = torch.stack([sde.times[(sde.times - at).abs().argmin()] for at in t])
    return t.clamp(min=sde.t_min).unique().flip(0)


def assert_has_the_marginal(x, sde, t, seed, what):
    """Mean and covariance of the mixture at t to 4.5 standard errors, and Kolmogorov-Smirnov against fresh draws."""
    mixture = mixture_2d()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    mean0 = mixture.weights @ mixture.means
    centred = mixture.means - mean0
    cov0 = torch.einsum("k,kij->ij", mixture.weights, mixture.covs + centred[:, :, None] * centred[:, None])
    mean, cov = alpha * mean0, alpha**2 * cov0 + sigma**2 * torch.eye(2, dtype=torch.float64)
    z = (x.mean(0) - mean) / (cov.diag() / len(x)).sqrt()
    assert z.abs().max() < 4.5, (what, t.item(), "mean", z)
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    z = (products.mean(0) - cov) / (products.std(0) / len(x) ** 0.5)
    assert z.abs().max() < 4.5, (what, t.item(), "covariance", z)
    fresh, model = noised(sde, mixture, 2 * N, t.item(), seed), Exact(sde, mixture)
    for a, b in ((x[:, 0], fresh[:, 0]), (x[:, 1], fresh[:, 1]), (model.log_prob(x, t), model.log_prob(fresh, t))):
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-5, (what, t.item())


def grid(sde, t: float, s: float, steps: int):
    """Between two of the times, uniform in lam."""
    lam = sde.lam(f64(t, s))
    inner = sde.time(torch.linspace(lam[0].item(), lam[1].item(), steps + 1, dtype=torch.float64))
    inner[0], inner[-1] = t, s
    return inner


@every_path
def test_forward_reverse_and_ode_share_their_marginals(sde):
    """The forward SDE by its exact kernel from time to time, the reverse SDE by many ancestral steps, the ODE by DPM-Solver-2."""
    model, at = Exact(sde, mixture_2d()), times(sde)
    x0, _ = mixture_2d().sample(N, torch.Generator().manual_seed(0))
    up = at.flip(0)
    x = sde.perturb(x0, up[0], normal(1, N, 2))
    assert_has_the_marginal(x, sde, up[0], 50, "forward")
    for i in range(len(up) - 1):
        ratio, std = sde.transition(up[i], up[i + 1])
        x = ratio * x + std * normal(2 + i, N, 2)
        assert_has_the_marginal(x, sde, up[i + 1], 60 + i, "forward")
    back = ode = x
    with torch.no_grad():
        for i in range(len(at) - 1):
            between = grid(sde, at[i].item(), at[i + 1].item(), 20)
            back = sample(model, Ancestral(), back, between, lambda k, i=i: normal(1000 + 100 * i + k, N, 2), "stop").x
            assert_has_the_marginal(back, sde, at[i + 1], 70 + i, "reverse")
            ode = sample(model, DPM2(), ode, between, no_noise).x
            assert_has_the_marginal(ode, sde, at[i + 1], 80 + i, "ode")


@every_path
def test_marginals_tell_a_wrong_score(sde):
    """The same ODE with the score's part doubled (the reverse SDE's drift without its noise) does not share them."""
    model, at = Exact(sde, mixture_2d()), times(sde)
    x = noised(sde, mixture_2d(), N, at[0].item())
    between = grid(sde, at[0].item(), at[-1].item(), 40)
    x = sample(model, EulerMaruyama(), x, between, lambda counter: torch.zeros(N, 2).double(), "stop").x
    with pytest.raises(AssertionError, match="wrong"):
        assert_has_the_marginal(x, sde, at[-1], 90, "wrong")
