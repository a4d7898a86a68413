"""The three qualities of a noise sequence: the KL in closed form and by sampling, overlaps by integration, the verdicts."""

import math

import pytest
import torch
from processes import every_process, f64, usual
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from diffcli.data.digits import Digits
from diffcli.data.mixture import Mixture
from diffcli.data.points import Points
from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.schedule import Geometric, Linear
from diffcli.diffusion.sde import VE, VP
from diffcli.explain import noise_sequence as ns


def gaussian():
    a = f64([0.9, 0.3], [-0.2, 0.4])
    return GaussianMixture(f64(1.0), f64([0.7, -1.2]), (a @ a.T)[None])


@every_process
def test_gaussian_kl_is_that_of_the_noised_gaussian(sde):
    law, moments = gaussian(), ns.moments_of_mixture(gaussian())
    for t in torch.linspace(sde.t_min, sde.t_max, 4, dtype=torch.float64):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        eye = torch.eye(2, dtype=torch.float64)
        noised = MultivariateNormal(alpha * law.means[0], alpha**2 * law.covs[0] + sigma**2 * eye)
        expected = kl_divergence(noised, MultivariateNormal(0 * law.means[0], sde.prior_std**2 * eye)).item()
        assert ns.gaussian_kl(sde, moments, t.item()) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@every_process
def test_item_kl_is_the_mean_of_the_items_own(sde):
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    for t in torch.linspace(sde.t_min, sde.t_max, 4, dtype=torch.float64):
        noised, prior = Normal(sde.alpha(t) * x, sde.sigma(t)), Normal(0 * x, sde.prior_std)
        expected = kl_divergence(noised, prior).sum(1).mean().item()
        assert ns.item_kl(sde, ns.moments_of_items(x), t.item()) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_two_bounds_hold_the_kl_of_a_mixture():
    """Monte-Carlo KL(p_t || prior) with the exact density, where the data still show."""
    data, sde = Mixture(name="two"), VP(Linear())
    moments = ns.moments_of_mixture(data.mixture)
    generator = torch.Generator().manual_seed(0)
    for t in f64(0.1, 0.3, 0.5):
        x0, _ = data.mixture.sample(40_000, generator)
        xt = sde.perturb(x0, t, torch.randn(x0.shape, dtype=torch.float64, generator=generator))
        terms = data.mixture.log_prob(xt, sde.alpha(t), sde.sigma(t)) - sde.prior_log_prob(xt)
        kl, error = terms.mean().item(), terms.std().item() / 200
        low, high = (kl_of(sde, moments, t.item()) for kl_of in (ns.gaussian_kl, ns.item_kl))
        assert low - 4 * error < kl < high + 4 * error
        assert low < high
        # what the lower bound lacks is the KL to the Gaussian with the same moments
        mean = sde.alpha(t) * data.mixture.weights @ data.mixture.means
        cov = torch.cov(xt.T)
        lack = (
            data.mixture.log_prob(xt, sde.alpha(t), sde.sigma(t)) - MultivariateNormal(mean, cov).log_prob(xt)
        ).mean()
        assert kl - low == pytest.approx(lack.item(), abs=5 * error + 1e-3)


@pytest.mark.parametrize(("n", "d"), [(200, 3), (12, 40)], ids=["n>d", "n<d"])
def test_moments_of_items(n, d):
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.linspace(1, 3, d) + 2
    found = ns.moments_of_items(x)
    expected = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    assert torch.allclose(found.variances.sort().values, expected.clamp_min(0), atol=1e-9)
    assert found.square == pytest.approx(x.square().sum(1).mean().item(), rel=1e-10)
    assert found.std == pytest.approx(x.var(0, correction=0).mean().sqrt().item(), rel=1e-10)


def test_moments_of_a_mixture_are_those_of_its_draws():
    mixture = Mixture(name="two").mixture
    x, _ = mixture.sample(100_000, torch.Generator().manual_seed(0))
    exact, drawn = ns.moments_of_mixture(mixture), ns.moments_of_items(x)
    assert torch.allclose(exact.mean, drawn.mean, atol=0.03)
    assert torch.allclose(exact.variances.sort().values, drawn.variances.sort().values, rtol=0.02)


@pytest.mark.parametrize("h", [0.0, 0.3, 1.5])
def test_item_overlap_is_the_bhattacharyya_integral(h):
    a, b = Normal(0.0, 1.0), Normal(0.0, math.exp(h))
    one = quad(lambda x: math.exp(0.5 * (a.log_prob(torch.tensor(x)) + b.log_prob(torch.tensor(x)))), -40, 40)[0]
    assert ns.item_overlap(f64(h), 1).item() == pytest.approx(one, rel=1e-5)
    assert ns.item_overlap(f64(-h), 7).item() == pytest.approx(one**7, rel=1e-4)


def test_overlap_is_1_for_equal_levels_and_goes_to_0_for_far_ones():
    moments = ns.moments_of_mixture(gaussian())
    assert ns.item_overlap(f64(0.0), 3072).item() == 1.0
    assert ns.marginal_overlap(f64(0.7, 0.7), moments).item() == pytest.approx(1.0, abs=1e-15)
    assert ns.item_overlap(f64(30.0), 2).item() < 1e-12
    assert ns.marginal_overlap(f64(1e-3, 1e14), moments).item() < 1e-12
    # data that are one point have no marginals but the items' own; wide data hide small noise
    point = ns.Moments(torch.zeros(5), torch.zeros(5))
    assert ns.marginal_overlap(f64(0.2, 0.5), point).item() == pytest.approx(ns.item_overlap(f64(2.5).log(), 5).item())
    wide = ns.Moments(torch.zeros(5), torch.full((5,), 100.0, dtype=torch.float64))
    assert ns.marginal_overlap(f64(0.2, 0.5), wide).item() > 0.9999


def test_marginal_overlap_is_the_bhattacharyya_coefficient():
    law = gaussian()
    v, w = (law.covs[0] + r**2 * torch.eye(2, dtype=torch.float64) for r in (0.3, 1.1))
    expected = (torch.det(v) * torch.det(w)) ** 0.25 / torch.det((v + w) / 2) ** 0.5
    found = ns.marginal_overlap(f64(0.3, 1.1), ns.moments_of_mixture(law))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_levels_needed_are_those_of_song_and_ermon():
    """232 levels from 0.01 to 50 on CIFAR-10 (2020, table 5), by their approximate rule; each step then has the overlap."""
    d, span = 3072, math.log(50 / 0.01)
    levels = ns.levels_needed(span, d)
    assert levels == pytest.approx(232, rel=0.05)
    assert ns.item_overlap(f64(span / (levels - 1)), d).item() >= ns.OVERLAP_GOOD
    assert ns.item_overlap(f64(span / (levels - 2)), d).item() < ns.OVERLAP_GOOD


@every_process
def test_neighbours_names_the_worst_pair(sde):
    moments = ns.moments_of_mixture(gaussian())
    times = sde.time(torch.linspace(*sde.lam(f64(sde.t_max, sde.t_min)).tolist(), 9, dtype=torch.float64))[
        [0, 1, 2, 5, 6, 8]
    ]
    found = ns.neighbours(sde, times, moments)
    pairs = list(zip(times[1:].tolist(), times[:-1].tolist(), strict=True))
    each = [ns.neighbours(sde, f64(*pair), moments)["marginal_overlap"] for pair in pairs]
    assert found["marginal_overlap"] == pytest.approx(min(each), rel=1e-9)
    assert found["between"] == pytest.approx(list(pairs[each.index(min(each))]))
    assert found["item_overlap"] <= found["marginal_overlap"]
    assert found["levels"] == 6


def test_smallest_scale():
    x = f64([0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.5], [10.0, 4.0])
    assert ns.smallest_scale(x, 17) == (2 / 17, "one level of the data")
    assert ns.smallest_scale(x, None)[0] == pytest.approx(0.5 / math.sqrt(2))  # of 5, 0.5, 0.5, 0.5, 6.5...
    assert ns.smallest_scale(torch.ones(3, 2), None)[0] is None


@every_process
def test_near_data_measures_the_noise_at_t_min(sde):
    moments = ns.moments_of_mixture(gaussian())
    found = ns.near_data(sde, moments, 0.01)
    ratio = (sde.sigma(f64(sde.t_min)) / sde.alpha(f64(sde.t_min))).item()
    assert found["noise"] == pytest.approx(ratio, rel=1e-9)
    assert found["noise_in_scales"] == pytest.approx(100 * ratio, rel=1e-9)
    trace = torch.trace(gaussian().covs[0]).item() / 2
    assert found["snr_db"] == pytest.approx(10 * math.log10(trace / ratio**2), rel=1e-9)


@pytest.mark.parametrize("data", [Points(n=600), Mixture(n=600), Digits()], ids=["moons", "four", "digits"])
@usual
def test_no_usual_process_is_warned_of(sde, data):
    assert ns.warnings(sde, ns.sample_of(data, 500)) == []


def test_what_is_warned_of():
    sample = ns.sample_of(Points(n=600), 500)
    (late,) = ns.warnings(VP(Linear(), t_min=0.2), sample)
    assert "p_0" in late and "0.2" in late
    # either alone: noise that is seen though the levels are coarse, fine data under noise that is not
    assert ns.near_data(VP(Linear(), t_min=0.2), sample.moments, 10.0)["verdict"] == "bad"
    assert ns.near_data(VP(Linear(), t_min=1e-3), sample.moments, 1e-3)["verdict"] == "bad"
    (weak,) = ns.warnings(VE(Geometric(0.001, 3.0)), sample)
    assert "p_1" in weak and "nats" in weak
    assert len(ns.warnings(VE(Geometric(0.5, 3.0)), sample)) == 2
