"""The whole likelihood against exact log-densities: bias, coverage of its intervals, and what t_min costs."""

import math

import pytest
from cases import build, every_path, f64, generator, mixture_2d, mixture_of, usual
from test_likelihood import at_t_min, item_noise

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.loss.base import TrainingSet

T95 = {8: 2.3646}  # Student's t, 97.5 %, by the number of probes
PATHS = [("vp", "linear"), ("subvp", "linear"), ("ve", "geometric"), ("flow", "logit")]


def wide(pairs, d):
    """Parameters of path and dimension, of which the dear ones are heavy."""
    cheap = {(*p, k) for p, k in zip(PATHS, (2, 16, 2, 16), strict=True)}
    return [
        pytest.param(p, k, id=f"{p[0]}-{k}", marks=() if (*p, k) in cheap else pytest.mark.heavy)
        for p in pairs
        for k in d
    ]


def measured(path, d, n, divergence, **settings):
    """The model, log-density and its error item by item, with a matched prior, at t_min <= 1e-4."""
    sde = build(*path, t_min=None if path[0] == "ve" else 1e-5)
    model = Exact(sde, mixture_2d() if d == 2 else mixture_of(d))
    x, truth = at_t_min(model, n)
    likelihood = Likelihood(divergence, prior="moments", **settings)
    likelihood.setup(model, TrainingSet(lambda: x, (d,)))
    found = likelihood(model, x, item_noise(x))
    return found, found.log_prob - truth


@pytest.mark.parametrize(("path", "d"), wide(PATHS, (2, 16, 64)))
@pytest.mark.parametrize("solver", ["exponential", pytest.param("rk45", marks=pytest.mark.heavy)])
def test_bias_with_the_exact_divergence(path, d, solver):
    """|signed mean error| <= 1e-4 nats a dimension."""
    settings = dict(steps=64, tol=1e-3) if solver == "exponential" else dict(tol=1e-6)
    _, error = measured(path, d, 48, "exact", solver=solver, **settings)
    assert abs(error.mean()) / d <= 1e-4


@pytest.mark.parametrize(("path", "d"), wide(PATHS, (2, 16, 64)))
@pytest.mark.parametrize("noise", ["rademacher", pytest.param("gaussian", marks=pytest.mark.heavy)])
def test_intervals_of_hutchinson_cover(path, d, noise):
    """95 % intervals of Student's t over 8 probes cover the truth on 90 to 99 % of the items."""
    least = 0.85 if noise == "gaussian" and d == 2 else 0.90  # |e|^2 of two normals is too skewed for 8 of them
    found, error = measured(path, d, 400, "hutchinson", noise=noise, steps=48)
    covered = (error.abs() <= T95[8] * found.std_err).double().mean().item()
    assert least <= covered <= 0.99
    assert abs(error.mean()) < 4 * error.std() / 400**0.5


@every_path
def test_truncation_is_right_to_first_order(sde):
    """What is left of log p_t - log p_0 is of second order in sigma^2 and log(alpha), on every path and wherever alpha is."""
    mixture, left, small = mixture_2d(), [], []
    x, _ = mixture.sample(32, generator(0))
    lam = sde.lam(f64(sde.t_min))
    for level in (3.6, 3.6 + math.log(2) / 2):  # sigma/alpha = 0.027, 0.019
        assert lam > level
        t = sde.time(f64(level))[0]
        early = At(sde, mixture, t.item())
        found = early.likelihood(x)
        gap = early.model.log_prob(x, t) - mixture.log_prob(x)
        assert found.abs().max() > 1e-3
        small.append((sde.sigma(t) ** 2 - sde.log_alpha(t)).item())
        left.append(((found - gap).abs().median(), gap.abs().median()))
    assert left[0][0] < 0.1 * left[0][1]
    assert left[0][0] / left[1][0] == pytest.approx((small[0] / small[1]) ** 2, rel=0.25)


class At:
    """The likelihood of a path that begins at t."""

    def __init__(self, sde, mixture, t):
        self.model = Exact(sde, mixture)
        self.t = t

    def likelihood(self, x):
        sde, old = self.model.sde, self.model.sde.t_min
        sde.t_min = self.t
        try:
            return Likelihood("exact", steps=4, tol=1e9)(self.model, x, item_noise(x)).truncation
        finally:
            sde.t_min = old


@pytest.mark.parametrize("path", usual, ids="-".join)
def test_truncation_mends_the_log_density(path):
    """`log_prob - truncation` is nearer to log p_0 than log_prob, at each solver."""
    sde = build(*path, t_min=None if path[0] == "ve" else 2e-3)
    model = Exact(sde, mixture_2d())
    x, _ = model.mixture.sample(24, generator(1))
    for solver in ("exponential", "rk4"):
        likelihood = Likelihood("exact", solver=solver, steps=96, prior="moments")
        likelihood.setup(model, TrainingSet(lambda: x, (2,)))
        found = likelihood(model, x, item_noise(x))
        blunt = found.log_prob - model.mixture.log_prob(x)
        cut = blunt - found.truncation
        at_t = model.log_prob(x, f64(sde.t_min)[0]) - model.mixture.log_prob(x)
        assert (found.truncation - at_t).abs().max() < 0.05 * at_t.abs().max()
        assert cut.abs().mean() < 0.5 * blunt.abs().mean() or blunt.abs().mean() < 1e-3
