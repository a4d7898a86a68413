"""Priors at t_max: their densities and divergences in closed form, and the floor that a matched one removes."""

import pytest
import torch
from cases import build, f64, mixture_2d, mixture_of, noised, normal, one_gaussian
from torch.distributions import MultivariateNormal, kl_divergence

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.prediction import X0
from diffcli.diffusion.prior import LARGEST, MatchedPrior, StandardPrior, matched_prior, mixture_moments, moments

SDE = build("ve", "geometric")


def given(items, mixture=None):
    return TrainingSet(lambda: items, tuple(items.shape[1:]), mixture=mixture)


def unasked():
    raise AssertionError("the moments are known, and items were read")


def test_densities_and_divergences_are_those_of_gaussians():
    mean, cov = normal(0, 3), (a := normal(1, 3, 3)) @ a.T
    eye = torch.eye(3, dtype=torch.float64)
    for sde in (build("vp", "linear", t_min=0.5), SDE, build("flow", "logit")):
        t = f64(sde.t_max)[0]
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        matched = MatchedPrior(sde, mean, cov), MultivariateNormal(alpha * mean, alpha**2 * cov + sigma**2 * eye)
        standard = StandardPrior(sde), MultivariateNormal(torch.zeros(3).double(), sde.prior_std**2 * eye)
        x = normal(2, 5, 3)
        for prior, truth in (matched, standard):
            assert torch.allclose(prior.log_prob(10 * x), truth.log_prob(10 * x), rtol=1e-10)
            kl = torch.stack([kl_divergence(MultivariateNormal(alpha * row, sigma**2 * eye), truth) for row in x])
            assert torch.allclose(prior.kl(x), kl, rtol=1e-8, atol=1e-9)


def test_an_image_is_its_pixels():
    mean, cov = normal(0, 6), torch.eye(6, dtype=torch.float64)
    prior, x = MatchedPrior(SDE, mean, cov), normal(1, 4, 1, 2, 3)
    assert torch.equal(prior.log_prob(x), prior.log_prob(x.flatten(1)))
    assert torch.equal(prior.kl(x), prior.kl(x.flatten(1)))


def test_moments_are_those_of_the_items():
    x = normal(0, 50, 2, 3)
    for chunk in (7, 4096):
        mean, cov = moments(x.float(), chunk)
        assert torch.allclose(mean, x.flatten(1).mean(0), atol=1e-6)
        assert torch.allclose(cov, torch.cov(x.flatten(1).T), atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 items"):
        moments(x[:1])


def test_a_mixtures_moments_are_its_samples():
    mixture = mixture_of(4)
    x, _ = mixture.sample(200_000, torch.Generator().manual_seed(0))
    mean, cov = mixture_moments(mixture)
    spread = x.std(0)
    assert ((mean - x.mean(0)).abs() < 5 * spread / 200_000**0.5).all()
    assert ((cov - torch.cov(x.T)).abs() < 6 * spread[:, None] * spread / 200_000**0.5 * 3**0.5).all()


def test_of_one_gaussian_it_is_the_law_at_t_max():
    gaussian = one_gaussian()
    x = noised(SDE, gaussian, 9, SDE.t_max)
    prior = matched_prior(Exact(SDE, gaussian), TrainingSet(unasked, (2,)))
    truth = gaussian.log_prob(x, *(f(f64(SDE.t_max)[0]) for f in (SDE.alpha, SDE.sigma)))
    assert torch.allclose(prior.log_prob(x), truth, rtol=1e-12)


def test_whose_moments():
    """The model's own mixture before the data's, the data's before those of the items."""
    wide, items = mixture_of(2), normal(3, 40, 2)
    exact, trained = Exact(SDE, mixture_2d()), X0(SDE, torch.nn.Identity())
    for denoiser, data, (mean, _) in (
        (exact, given(items, wide), mixture_moments(mixture_2d())),
        (trained, given(items, wide), mixture_moments(wide)),
        (trained, given(items), moments(items)),
    ):
        assert torch.allclose(matched_prior(denoiser, data).mean, mean)


def test_the_floor_of_the_standard_prior_is_gone():
    """VE to sigma = 3 leaves 0.02 nats and more between p_1 and N(0, 9 I); the matched prior leaves below 1e-3."""
    from diffcli.diffusion.schedule import Geometric
    from diffcli.diffusion.sde import VE

    sde = VE(Geometric(sigma_min=1e-3, sigma_max=3.0))
    model = Exact(sde, mixture_2d())
    x = noised(sde, model.mixture, 256, 0.0)
    truth, error = model.log_prob(x, f64(sde.t_min)[0]), {}
    for prior in ("standard", "moments"):
        likelihood = Likelihood("exact", prior=prior, tol=1e-3)
        likelihood.setup(model, given(x))
        noise = None  # an exact divergence draws nothing
        error[prior] = abs((likelihood(model, x, noise).log_prob - truth).mean().item())
    assert error["standard"] > 0.02 and error["moments"] < 1e-3


def test_refusals():
    big = TrainingSet(unasked, (LARGEST + 1,))
    with pytest.raises(ValueError, match=f"at most {LARGEST} dimensions"):
        matched_prior(X0(SDE, torch.nn.Identity()), big)
    with pytest.raises(ValueError, match="call setup first"):
        Likelihood(prior="moments")(Exact(SDE, mixture_2d()), normal(0, 2, 2), None)
    with pytest.raises(ValueError, match="a covariance of 3 dimensions"):
        MatchedPrior(SDE, normal(0, 3), torch.eye(2))
