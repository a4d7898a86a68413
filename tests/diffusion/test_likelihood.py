"""Likelihoods against exact log-densities; their errors, and their independence of the batch."""

import math

import pytest
import torch
from cases import build, every_path, f64, generator, mixture_2d, mixture_of, normal, short_paths, usual_paths
from torchdiffeq import odeint

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.likelihood import ExactDivergence, Hutchinson, InLam, Likelihood, log_likelihood
from diffcli.diffusion.ode import FixedStep
from diffcli.diffusion.prior import StandardPrior
from diffcli.randomness import ItemNoise


def at_t_min(model, n, seed=0):
    """Items of p at t_min, and their exact log-density there."""
    x0, _ = model.mixture.sample(n, generator(seed))
    t = torch.tensor(model.sde.t_min, dtype=torch.float64)
    x = model.sde.perturb(x0, t, normal(seed + 1, *x0.shape))
    return x, model.log_prob(x, t)


def with_true_prior(model, result):
    """The log-likelihood with p at t_max itself in place of the prior: exact but for the solver."""
    t = torch.tensor(model.sde.t_max, dtype=torch.float64)
    return result.log_prob - model.sde.prior_log_prob(result.x1) + model.log_prob(result.x1, t)


def item_noise(x, dtype=torch.float64):
    return ItemNoise(0, range(len(x)), x.shape[1:], dtype)


def by_rk4(model, x, divergence, noise=None):
    prior = StandardPrior(model.sde)
    return log_likelihood(model, x, InLam(FixedStep("rk4", 12)), divergence, noise or item_noise(x), prior)


class OneProbe:
    """In place of an ItemNoise: these signs."""

    def __init__(self, signs):
        self.signs = lambda name, count: signs


@pytest.mark.parametrize("mixture", [mixture_2d(), mixture_of(16)], ids=["2d", "16d"])
@usual_paths
def test_exact_log_density_at_the_default_tolerance(sde, mixture):
    """Bias below 1e-3 nats a dimension, what is missing of the prior included."""
    model = Exact(sde, mixture)
    x, truth = at_t_min(model, 48)
    got = Likelihood("exact", solver="rk45")(model, x, item_noise(x))
    d = x.shape[1]
    assert abs((got.log_prob - truth).mean()) / d < 1e-3
    assert (with_true_prior(model, got) - truth).abs().max() / d < 1e-3
    assert torch.equal(got.std_err, torch.zeros_like(truth))


@every_path
def test_exact_log_density_on_every_path(sde):
    """Item by item, with the true prior: only the solver's error is left."""
    model = Exact(sde, mixture_2d())
    x, truth = at_t_min(model, 8)
    got = Likelihood("exact", solver="rk45", tol=1e-6)(model, x, item_noise(x))
    assert (with_true_prior(model, got) - truth).abs().max() < 5e-5


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_standard_normal_under_vp_is_exact(divergence):
    """It is stationary: the field is 0, x stays, nothing is left to integrate."""
    sde = build("vp", "linear")
    model = Exact(sde, GaussianMixture(f64(1.0), f64([0.0, 0.0, 0.0]), torch.eye(3, dtype=torch.float64)[None]))
    x = normal(0, 10, 3)
    got = Likelihood(divergence, solver="rk45")(model, x, item_noise(x))
    truth = -0.5 * x.square().sum(1) - 1.5 * math.log(2 * math.pi)
    assert (got.log_prob - truth).abs().max() < 1e-8 and (got.x1 - x).abs().max() < 1e-8


@pytest.mark.parametrize("solver, order", [("rk4", 4), ("heun", 2)])
@short_paths
def test_fixed_solvers_have_their_order(sde, solver, order):
    model = Exact(sde, mixture_2d())
    x, truth = at_t_min(model, 16)
    coarse, fine = (
        (with_true_prior(model, Likelihood("exact", solver=solver, steps=n)(model, x, item_noise(x))) - truth).abs()
        for n in (40, 80)
    )
    assert torch.log2(coarse / fine).median().item() == pytest.approx(order, abs=0.3)


@short_paths
def test_agrees_with_torchdiffeq(sde):
    """dx/dt = f x - g^2/2 score in t, with the divergence by autograd, at tight tolerance."""
    model = Exact(sde, mixture_2d())
    x, _ = at_t_min(model, 6)

    def fn(t, state):
        y = state[0].detach().requires_grad_()
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        with torch.enable_grad():
            u = sde.f(t) * y - 0.5 * sde.g2(t) * model.mixture.score(y, alpha, sigma)
            div = sum(torch.autograd.grad(u[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(2))
        return u.detach(), div.detach()

    times = f64(sde.t_min, sde.t_max)
    y, integral = odeint(fn, (x, torch.zeros(6, dtype=torch.float64)), times, rtol=1e-7, atol=1e-8, method="dopri5")
    got = Likelihood("exact", solver="rk45", tol=1e-7)(model, x, item_noise(x))
    assert torch.allclose(got.x1, y[-1], rtol=1e-5, atol=1e-5)
    assert torch.allclose(got.log_prob, sde.prior_log_prob(y[-1]) + integral[-1], rtol=1e-5, atol=1e-5)


def test_hutchinson_is_unbiased_within_its_own_error():
    """(estimate - exact) / std_err over items has mean 0 and the spread of Student's t."""
    n, k = 300, 24
    model = Exact(build("vp", "cosine"), mixture_of(6))
    x, _ = at_t_min(model, n)
    exact, guess = (by_rk4(model, x, div) for div in (ExactDivergence(), Hutchinson(k)))  # only the probes differ
    assert torch.equal(exact.x1, guess.x1)
    z = (guess.log_prob - exact.log_prob) / guess.std_err
    spread = ((k - 1) / (k - 3)) ** 0.5
    assert abs(z.mean()) < 3.5 * spread / n**0.5
    assert z.std().item() == pytest.approx(spread, rel=0.15)


def test_std_err_is_that_of_the_mean_over_probes():
    """From the same probes one at a time: log_prob is their mean, std_err their standard deviation / sqrt(K)."""
    model = Exact(build("ve", "geometric"), mixture_of(4))
    x, _ = at_t_min(model, 5)
    signs = item_noise(x).signs("probes", 6)
    together = by_rk4(model, x, Hutchinson(6))
    alone = [by_rk4(model, x, Hutchinson(1), OneProbe(signs[:, k : k + 1])) for k in range(6)]
    values = torch.stack([a.log_prob for a in alone])
    assert torch.allclose(together.log_prob, values.mean(0), rtol=1e-10)
    assert torch.allclose(together.std_err, values.std(0, correction=1) / 6**0.5, rtol=1e-8)


def test_probes_are_drawn_once_and_by_item():
    """Fixed along the trajectory: one draw for each item, however many evaluations there are."""
    model, asked = Exact(build("vp", "linear", t_min=0.02), mixture_2d()), []
    x, _ = at_t_min(model, 4)
    noise = item_noise(x)

    class Counting:
        def signs(self, name, count):
            asked.append(count)
            return noise.signs(name, count)

    got = Likelihood("hutchinson", probes=3, solver="rk45")(model, x, Counting())
    assert asked == [3] and (got.nfe > 6).all()
    repeated = Likelihood("hutchinson", probes=3, solver="rk45")(model, x, noise)
    assert torch.equal(repeated.log_prob, got.log_prob)


def test_one_probe_has_no_error_of_its_own():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 3)
    got = Likelihood("hutchinson", probes=1, solver="rk4", steps=8)(model, x, item_noise(x))
    assert torch.isnan(got.std_err).all() and torch.isfinite(got.log_prob).all()


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@short_paths
def test_an_items_likelihood_does_not_depend_on_its_batch(sde, divergence):
    """Neither on how many neighbours it has nor on how hard they are."""
    model = Exact(sde, mixture_2d())
    x = at_t_min(model, 6)[0]
    x[4:] = f64([8.0, -15.0], [-14.0, 3.0])  # far out, where the solver takes more steps

    def nll(items):
        return Likelihood(divergence, solver="rk45")(model, x[items], ItemNoise(0, items, (2,), torch.float64))

    whole = nll(list(range(6)))
    assert whole.nfe[4:].max() > 1.5 * whole.nfe[:4].max()
    for items in ([2], [5, 2, 0]):
        part = nll(items)
        assert torch.allclose(part.log_prob, whole.log_prob[items], rtol=1e-12, atol=1e-12)
        assert torch.allclose(part.std_err, whole.std_err[items], rtol=1e-10, atol=1e-12)
        assert torch.equal(part.nfe, whole.nfe[items])


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_an_image_is_its_pixels(divergence):
    model = Exact(build("vp", "linear"), mixture_of(6))
    x, _ = at_t_min(model, 5)
    likelihood = Likelihood(divergence, solver="rk4", steps=8)
    flat = likelihood(model, x, item_noise(x))
    image = likelihood(model, x.view(5, 1, 2, 3), item_noise(x.view(5, 1, 2, 3)))
    assert image.x1.shape == (5, 1, 2, 3) and image.log_prob.shape == (5,)
    assert torch.allclose(image.log_prob, flat.log_prob, rtol=1e-10)


def test_float32_states_keep_the_integral_in_float64():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, truth = at_t_min(model, 12)
    got = Likelihood("exact", solver="rk45", tol=1e-4)(model, x.float(), item_noise(x, torch.float32))
    assert got.x1.dtype == torch.float32 and got.log_prob.dtype == torch.float64
    assert (with_true_prior(model, got) - truth).abs().max() < 0.02


def test_gradients_of_the_caller_are_left_off():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 2)
    with torch.no_grad():
        got = Likelihood("exact", solver="rk4", steps=4)(model, x, item_noise(x))
    assert not got.log_prob.requires_grad and not got.x1.requires_grad
