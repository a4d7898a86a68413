"""The variational bounds: tight item by item where score and prior are exact, above the truth elsewhere, with honest errors."""

import copy
import itertools
import math

import pytest
import torch
from cases import Twice, build, every_path, f64, generator, level, mixture_2d, one_gaussian, paths
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from diffcli.diffusion.bound import ContinuousBound, DiscreteBound
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.loss import VLB, TrainingSet
from diffcli.diffusion.prior import MatchedPrior, StandardPrior
from diffcli.diffusion.schedule import DDPM, NCSN
from diffcli.diffusion.sde import VE, VP, OneLevel
from diffcli.randomness import Draw, ItemNoise

EYE = torch.eye(2, dtype=torch.float64)
SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
few_paths = paths([("vp", "linear"), ("subvp", "linear"), ("ve", "geometric"), ("flow", "logit"), ("path",)])
CHAINS = {"ddpm": VP(DDPM(T=30)), "ncsn": VE(NCSN(L=30, sigma_max=20.0)), "flow": build("flow", "logit")}
every_chain = pytest.mark.parametrize("sde", [pytest.param(sde, id=name) for name, sde in CHAINS.items()])


class Quadrature:
    """For items repeated 4 times: the sign patterns, which integrate a quadratic over N(0, I), and Gauss's points in u."""

    def __init__(self, count):
        self.count = count

    def __call__(self, name):
        return SIGNS.repeat(self.count, 1)

    def uniform(self, name):
        return torch.full((4 * self.count, 2), 0.5 + (-0.5, 0.5)[int(name[-1])] / math.sqrt(3), dtype=torch.float64)


def expected(bound, model, x0):
    """The means of prior, steps and reconstruction over noise and levels, for a model that is linear in x."""
    found = bound(model, x0.repeat_interleave(4, 0), Quadrature(len(x0)))
    return [part.view(-1, 4).mean(1) for part in found[:3]]


def repeated(bound, model, x0, copies, seed=0):
    """Independent estimates for each item: a Bound of (copies, items) each."""
    x = x0.repeat(copies, 1)
    found = bound(model, x, ItemNoise(seed, range(len(x)), x.shape[1:], torch.float64))
    return found.value.view(copies, -1), found.std_err.view(copies, -1), found


def z_of(values, truth):
    """How many standard errors the mean over copies is off, item by item."""
    return (values.mean(0) - truth) / (values.std(0) / len(values) ** 0.5)


def exact_prior(sde, gaussian):
    return MatchedPrior(sde, gaussian.means[0], gaussian.covs[0])


@every_path
def test_the_bound_is_the_likelihood_item_by_item(sde):
    """Exact score and prior, one Gaussian: L_T + int E||eps - eps_theta||^2 dlam = KL(q(x | x_0) || p) at t_min, and with
    the decoder it is -log p(x_0) up to its (sigma/alpha)^2 over the data's least variance."""
    gaussian, x0 = one_gaussian(), one_gaussian().sample(6, generator(0))[0]
    bound = ContinuousBound(192)
    bound.setup(Exact(sde, gaussian), exact_prior(sde, gaussian))
    prior, steps, last = expected(bound, Exact(sde, gaussian), x0)
    t = f64(sde.t_min)[0]
    q = MultivariateNormal(sde.alpha(t) * x0, sde.sigma(t) ** 2 * EYE)
    kl = kl_divergence(q, MultivariateNormal(*level(gaussian, sde, t)))
    assert torch.allclose(prior + steps, kl, rtol=1e-6, atol=1e-6), (prior + steps - kl).abs().max()
    rest = torch.exp(-2 * sde.lam(t)).item() / 0.05
    off = prior + steps + last + gaussian.log_prob(x0)
    assert off.abs().max() < 10 * rest + 1e-6, off


@pytest.mark.parametrize("t_min", [0.05, 0.4])
@few_paths
def test_the_last_term_is_the_decoder_in_the_mean(sde, t_min):
    """E 1/2 ||A eps + b||^2 + d/2 log(2 pi r), r = (sigma/alpha)^2, for eps_theta - eps = A eps + b by Gaussian algebra."""
    sde = copy.deepcopy(sde)
    sde._set_range(t_min, sde.t_max)
    gaussian, x0 = one_gaussian(), one_gaussian().sample(6, generator(0))[0]
    bound = ContinuousBound(2)
    bound.setup(Exact(sde, gaussian), exact_prior(sde, gaussian))
    _, _, last = expected(bound, Exact(sde, gaussian), x0)
    alpha, sigma = sde.alpha(f64(t_min)[0]), sde.sigma(f64(t_min)[0])
    inverse = torch.linalg.inv(alpha**2 * gaussian.covs[0] + sigma**2 * EYE)
    a, b = sigma**2 * inverse - EYE, sigma * alpha * (x0 - gaussian.means[0]) @ inverse
    plain = 0.5 * (a.square().sum() + b.square().sum(1)) + torch.log(2 * math.pi * (sigma / alpha) ** 2)
    assert torch.allclose(last, plain, rtol=1e-9)


@few_paths
def test_a_mixture_is_tight_within_its_own_error(sde):
    """Exact score of three components: the mean over many noises is -log p(x_0), item by item, and std_err says how near."""
    mixture, x0 = mixture_2d(), mixture_2d().sample(5, generator(1))[0]
    bound = ContinuousBound(16)
    bound.setup(Exact(sde, mixture), MatchedPrior(sde, *moments_of(mixture)))
    values, std_err, found = repeated(bound, Exact(sde, mixture), x0, 300)
    # hardly any of its own noise is left in the last term, of which x0_hat sees nothing
    assert found.reconstruction.view(300, 5).std(0).max() < 0.05
    z = z_of(values, -mixture.log_prob(x0))
    assert z.abs().max() < 4, z
    assert (std_err**2).mean().item() == pytest.approx(values.var(0).mean().item(), rel=0.25)


def moments_of(mixture):
    w, m = mixture.weights, mixture.means
    mean = w @ m
    return mean, torch.einsum("k,kij->ij", w, mixture.covs + m[:, :, None] * m[:, None]) - mean[:, None] * mean


def test_a_wrong_score_costs_its_squared_error():
    """`bound - (-log p) = int E||eps_theta - eps_exact||^2 dlam`: what Shifted adds is known in the mean over items."""
    sde, gaussian = build("vp", "linear"), one_gaussian()
    wrong = GaussianMixture(f64(1.0), gaussian.means + 0.3, gaussian.covs)
    x0 = gaussian.sample(50, generator(0))[0]
    bound = ContinuousBound(256)
    bound.setup(Exact(sde, gaussian), exact_prior(sde, gaussian))
    right = sum(expected(bound, Exact(sde, gaussian), x0))
    off = sum(expected(bound, Exact(sde, wrong), x0)) - right
    # item by item: eps_theta - eps_exact = -sigma alpha S^-1 delta is a constant, its product with the rest a line in x0
    assert off.mean() > 0.1
    lam = torch.linspace(sde.lam(f64(1.0)[0]).item(), sde.lam(f64(sde.t_min)[0]).item(), 20001, dtype=torch.float64)
    t = sde.time(lam)
    alpha, sigma = sde.alpha(t)[:, None, None], sde.sigma(t)[:, None, None]
    inverse = torch.linalg.inv(alpha**2 * gaussian.covs[0] + sigma**2 * EYE)
    miss = (sigma * alpha * inverse @ f64([0.3], [0.3]))[..., 0]  # (T, 2)
    rest = torch.einsum("tij,nj->nti", sigma * alpha * inverse, x0 - gaussian.means[0])  # E eps_exact - eps
    extra = torch.trapezoid((miss**2).sum(1) - 2 * torch.einsum("ti,nti->nt", miss, rest), lam)
    assert torch.allclose(off, extra, rtol=1e-3, atol=1e-3)


@every_chain
@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_chain_is_that_of_the_loss(sde, variance):
    """times=all at the same noise is VLB's own sum; a stratified estimate has its mean, and std_err is honest."""
    model, x0 = Exact(sde, mixture_2d()), mixture_2d().sample(3, generator(2))[0]
    T = None if sde.times is not None else 30
    loss = VLB(T, variance)
    loss.setup(model, TrainingSet(lambda: None, (2,)))
    terms = loss.terms(model, x0.repeat(200, 1), Draw(0, 0)).double().view(200, 3, -1)
    whole, spread = terms.sum(2).mean(0), terms.sum(2).std(0) / 200**0.5
    for times in ("all", 8):
        bound = DiscreteBound(times, T, variance)
        bound.setup(model)
        values, std_err, found = repeated(bound, model, x0, 200)
        error = (values.var(0) / 200 + spread**2).sqrt()
        assert ((values.mean(0) - whole) / error).abs().max() < 4
        ratio = ((std_err**2).mean(0) / values.var(0)).mean().item()
        assert ratio == pytest.approx(1, rel=0.3) if times == 8 else 0.7 < ratio < 2.5
        assert torch.allclose(found.prior[:3], terms[0, :, -1], rtol=1e-9)
        steps = len(bound.chain.t) - 1
        assert set(found.nfe.tolist()) == {4 + (steps if times == "all" else 8)}


@every_chain
@pytest.mark.parametrize("times", [2, 8, 100, "all"])
def test_the_strata_hold_every_level_once(sde, times):
    bound = DiscreteBound(times, None if sde.times is not None else 30)
    bound.setup(Exact(sde, mixture_2d()))
    low, high, measure = bound.strata(sde)
    levels = bound.chain.t
    assert measure.sum().item() == pytest.approx(len(levels) - 1)
    assert torch.equal(low[1:], high[:-1]) and (low < high).all()
    assert low[0] == levels[0] and high[-1] == pytest.approx(levels[-1].item())
    if times in (100, "all"):
        assert torch.allclose(high, levels[1:]) and torch.allclose(measure, torch.ones_like(measure))


def test_the_strata_of_the_continuous_bound():
    for sde in (build("vp", "linear"), build("ve", "geometric"), build("drift")):
        bound = ContinuousBound(10)
        bound.setup(Exact(sde, mixture_2d()))
        low, high, measure = bound.strata(sde)
        assert len(low) == 5 and (low[0], high[-1]) == (sde.t_min, sde.t_max)
        assert torch.allclose(sde.lam(low) - sde.lam(high), measure, rtol=1e-6)
        # next to the data all noise is error, next to the prior none is
        gaussian = one_gaussian()
        parts = bound(Exact(sde, gaussian), gaussian.means.expand(200, 2), ItemNoise(0, range(200), (2,))).parts.mean(0)
        assert parts[-1] < 0.3 * measure[-1] < 1.6 * measure[0] < parts[0]


def test_more_levels_tend_to_the_continuous_bound():
    """Item by item: `sum L_{i-1}` down to t_1 falls towards the integral down to t_1 as 1/T, and stays above it."""
    gaussian, x0, start = one_gaussian(), one_gaussian().sample(20, generator(0))[0], 0.25
    sde, off = build("vp", "linear"), []
    for T in (24, 96, 384):
        bound = DiscreteBound("all", T)
        bound.setup(Exact(sde, gaussian), exact_prior(sde, gaussian))
        found = bound(Exact(sde, gaussian), x0.repeat_interleave(4, 0), Quadrature(20))
        sums = found.parts[:, T // 4 - 1 :].sum(1).view(-1, 4).mean(1)
        short = build("vp", "linear", t_min=start)
        limit = ContinuousBound(128)
        limit.setup(Exact(short, gaussian), exact_prior(short, gaussian))
        off.append((sums - expected(limit, Exact(short, gaussian), x0)[1]).mean().item())
        whole = found.value.view(-1, 4).mean(1)
        assert (whole > -gaussian.log_prob(x0)).all()
    assert off[0] > off[1] > off[2] > 0
    assert off[0] / off[1] == pytest.approx(4, rel=0.2) and off[1] / off[2] == pytest.approx(4, rel=0.1)


def lattice(std):
    """Four narrow components at the centres of four levels."""
    centres = f64([-0.75], [-0.25], [0.25], [0.75])
    return GaussianMixture(f64(0.1, 0.2, 0.3, 0.4), centres, f64([[std**2]]).expand(4, 1, 1)), centres


@pytest.mark.parametrize("std", [1e-4, 0.3])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_levels_get_probabilities(kind, std):
    """sum_k exp(-bound(k)) <= 1, and 1 with `-log w_k` itself for data on their levels (continuous)."""
    mixture, centres = lattice(std)
    sde = build("vp", "linear")
    model = Exact(sde, mixture)
    bound = ContinuousBound(32) if kind == "continuous" else DiscreteBound(32, T=200)
    bound.setup(model, levels=4)
    values, _, _ = repeated(bound, model, centres, 200)
    error = values.std(0) / 200**0.5
    total = torch.exp(-values.mean(0)).sum().item()
    assert total < 1 + 4 * error.max()
    if std == 1e-4:
        assert ((values.mean(0) + mixture.weights.log()) / error).abs().max() < 4 or kind == "discrete"
        assert total > (0.99 if kind == "continuous" else 0.85)


def test_within_a_level_it_does_not_matter_where():
    mixture, centres = lattice(0.1)
    model = Exact(build("vp", "linear"), mixture)
    noise = ItemNoise(0, range(4), (1,), torch.float64)
    for bound in (ContinuousBound(4), DiscreteBound(4)):
        bound.setup(model, levels=4)
        assert torch.equal(bound(model, centres + 0.2, noise).value, bound(model, centres, noise).value)
        bound.setup(model)
        assert not torch.equal(bound(model, centres + 0.2, noise).value, bound(model, centres, noise).value)


def test_the_bin_of_the_continuous_bound_is_a_gaussians_mass():
    sde = build("vp", "linear", t_min=0.2)
    mixture, centres = lattice(0.1)
    model, noise = Exact(sde, mixture), ItemNoise(0, range(4), (1,), torch.float64)
    bound = ContinuousBound(2)
    bound.setup(model, levels=4)
    found, t = bound(model, centres, noise).reconstruction, f64(0.2)[0]
    masses = []
    for k in range(4):
        at = Normal(model(sde.perturb(centres, t, noise(f"elbo eps last {k}")), t), sde.sigma(t) / sde.alpha(t))
        low, high = f64([-math.inf], [-0.5], [0.0], [0.5]), f64([-0.5], [0.0], [0.5], [math.inf])
        masses.append(-torch.log(at.cdf(high) - at.cdf(low))[:, 0])
    assert torch.allclose(found, torch.stack(masses).mean(0), rtol=1e-6)


@every_path
def test_the_prior_is_the_one_that_is_given(sde):
    mixture, x0 = mixture_2d(), mixture_2d().sample(4, generator(0))[0]
    noise = ItemNoise(0, range(4), (2,), torch.float64)
    for prior in (StandardPrior(sde), MatchedPrior(sde, *moments_of(mixture))):
        for bound in (ContinuousBound(2), DiscreteBound(2)):
            bound.setup(Exact(sde, mixture), prior)
            assert torch.equal(bound(Exact(sde, mixture), x0, noise).prior, prior.kl(x0))


def test_an_item_has_the_same_bound_in_every_batch_and_shape():
    model, x0 = Exact(build("vp", "linear"), mixture_2d()), mixture_2d().sample(6, generator(0))[0]
    for bound in (ContinuousBound(4), DiscreteBound(4), DiscreteBound("all", T=5)):
        bound.setup(model)
        whole = bound(model, x0, ItemNoise(3, range(6), (2,), torch.float64))
        part = bound(model, x0[2:4], ItemNoise(3, [2, 3], (2,), torch.float64))
        assert torch.allclose(whole.value[2:4], part.value, rtol=1e-12)
        flat = bound(model, x0.view(6, 1, 2), ItemNoise(3, range(6), (1, 2), torch.float64))
        assert torch.allclose(whole.value, flat.value, rtol=1e-12)
        single = bound(model, x0.float(), ItemNoise(3, range(6), (2,), torch.float64))
        assert torch.allclose(whole.value, single.value, rtol=1e-3, atol=1e-2)
        assert torch.equal(bound(Twice(model), x0, ItemNoise(3, range(6), (2,), torch.float64)).nfe, 2 * whole.nfe)


def test_what_does_not_fit_is_refused():
    vp = Exact(build("vp", "linear"), mixture_2d())
    for make, words in [
        (lambda: ContinuousBound(3), "even"),
        (lambda: DiscreteBound(0), "even"),
        (lambda: DiscreteBound(T=1), "T must be at least 2"),
        (lambda: DiscreteBound(variance="none"), "small, large, learned"),
        (lambda: ContinuousBound("all").setup(vp), "discrete"),
        (lambda: DiscreteBound(variance="learned").setup(vp), "prediction.outputs=2"),
        (lambda: DiscreteBound(T=9).setup(Exact(CHAINS["ddpm"], mixture_2d())), "30 levels"),
        (lambda: ContinuousBound().setup(Exact(OneLevel(), mixture_2d())), "levels=one"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()
    free = Exact(build("vp", "linear"), mixture_2d())
    free.posterior_mean = False
    with pytest.raises(ValueError, match="free field"):
        ContinuousBound().setup(free)
