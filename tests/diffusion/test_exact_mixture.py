"""Gaussian mixtures: density and score against scipy, autograd and convolution; float64 for good."""

import numpy as np
import pytest
import torch
from cases import build, every_path, f64, generator, mixture_2d, mixture_of, normal
from scipy.stats import multivariate_normal

from diffcli.diffusion.exact import Exact, GaussianMixture

MIXTURES = pytest.mark.parametrize("mixture", [mixture_2d(), mixture_of(5)], ids=["2d", "5d"])


@MIXTURES
@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.0), (0.6, 0.8), (1.0, 3.0)])
def test_log_prob_agrees_with_scipy(mixture, alpha, sigma):
    """The mixture noised to (alpha, sigma) has means alpha m and covariances alpha^2 C + sigma^2 I."""
    x = 2 * normal(0, 20, mixture.means.shape[1])
    eye = np.eye(x.shape[1])
    p = sum(
        w * multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * eye).pdf(x.numpy())
        for w, m, c in zip(mixture.weights.tolist(), mixture.means.numpy(), mixture.covs.numpy(), strict=True)
    )
    assert np.allclose(mixture.log_prob(x, alpha, sigma).numpy(), np.log(p), rtol=1e-11, atol=1e-11)


def test_log_prob_given_a_label_is_that_of_the_component_alone():
    mixture, x, label = mixture_2d(), 2 * normal(0, 4, 2), torch.tensor([0, 1, 2, -1])
    found = mixture.log_prob(x, 0.6, 0.8, label)
    for k in range(3):
        alone = GaussianMixture(f64(1.0), mixture.means[k : k + 1], mixture.covs[k : k + 1])
        assert torch.allclose(found[k], alone.log_prob(x[k : k + 1], 0.6, 0.8)[0], rtol=1e-12)
    assert torch.allclose(found[3], mixture.log_prob(x[3:], 0.6, 0.8)[0], rtol=1e-12)


def test_log_prob_far_away_is_finite():
    assert torch.isfinite(mixture_2d().log_prob(f64([300.0, -200.0]))).all()


@MIXTURES
def test_score_is_the_gradient_of_log_prob(mixture):
    x = (2 * normal(1, 30, mixture.means.shape[1])).requires_grad_()
    alpha, sigma = torch.linspace(0.1, 1, 30).double(), torch.linspace(2, 0.01, 30).double()
    (grad,) = torch.autograd.grad(mixture.log_prob(x, alpha, sigma).sum(), x)
    assert torch.allclose(mixture.score(x, alpha, sigma), grad, rtol=1e-10, atol=1e-10)


def test_noised_density_is_the_convolution():
    """p_t(x) = E_{x0} N(x; alpha x0, sigma^2 I), by Monte Carlo."""
    mixture, alpha, sigma = mixture_2d(), 0.7, 0.8
    x0, _ = mixture.sample(200_000, generator(0))
    for x in f64([0.0, 0.0], [1.0, -1.0], [-2.0, 1.0]):
        kernel = torch.exp(-((x - alpha * x0) ** 2).sum(1) / (2 * sigma**2)) / (2 * torch.pi * sigma**2)
        std_err = kernel.std() / len(kernel) ** 0.5
        assert abs(mixture.log_prob(x[None], alpha, sigma).exp() - kernel.mean()) < 4 * std_err


def test_samples_have_the_moments_and_frequencies():
    mixture, n = mixture_2d(), 100_000
    x, k = mixture.sample(n, generator(1))
    freq = torch.bincount(k, minlength=3) / n
    assert torch.allclose(freq.double(), mixture.weights, atol=0.006)
    for j in range(3):
        part = x[k == j]
        assert torch.allclose(part.mean(0), mixture.means[j], atol=0.02)
        assert torch.allclose(torch.cov(part.T), mixture.covs[j], atol=0.01)


@every_path
def test_exact_log_prob_is_the_mixtures_at_that_level(sde):
    mixture, t = mixture_2d(), f64(0.1, 0.5, 0.9)
    model, x = Exact(sde, mixture), normal(0, 3, 2)
    xg = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(xg, t).sum(), xg)
    assert torch.allclose(model.score(x, t), score, rtol=1e-9, atol=1e-9)
    assert torch.allclose(model.log_prob(x, t), mixture.log_prob(x, sde.alpha(t), sde.sigma(t)))


def test_stays_float64_whatever_the_module_is_cast_to():
    exact = mixture_2d().covs.clone()
    for cast in (
        lambda m: m.float(),
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(torch.float32),
    ):
        model = cast(Exact(build("vp", "linear"), mixture_2d()))
        for name, buffer in model.named_buffers():
            assert buffer.dtype == torch.float64, name
    assert torch.equal(mixture_2d().float().means, mixture_2d().means)
    assert torch.equal(Exact(build("vp", "linear"), mixture_2d()).float().mixture.weights, mixture_2d().weights)
    assert torch.equal(mixture_2d().float().covs, exact)
    assert not mixture_2d().state_dict()


def test_float32_state_gets_float32_readings_of_the_float64_score():
    model, x = Exact(build("vp", "linear"), mixture_2d()), normal(0, 8, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    got = model.score(x.float(), t)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), model.score(x.float().double(), t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "weights, means, covs",
    [
        ([0.5, 0.5], [[0.0, 0.0]], [np.eye(2)]),
        ([1.0], [[0.0, 0.0]], [np.eye(3)]),
        ([1.0], [[0.0, 0.0]], [np.diag([1.0, -1.0])]),
        ([1.0], [[0.0, 0.0]], [np.diag([1.0, 0.0])]),
    ],
    ids=["weights", "shape", "indefinite", "singular"],
)
def test_refuses_what_is_no_mixture(weights, means, covs):
    with pytest.raises(ValueError, match="weights|covariance"):
        GaussianMixture(f64(*weights), f64(*means), torch.as_tensor(np.array(covs)))
