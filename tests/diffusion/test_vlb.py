"""The bound of a discrete chain: each term against Gaussian algebra, and the whole against the chain's own likelihood."""

import itertools
import math

import pytest
import torch
from cases import Recorder, Shifted, build, f64, generator, mixture_2d, normal, one_gaussian, rotated
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from diffcli.diffusion.bound.decoder import decoder
from diffcli.diffusion.chain import Chain
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.loss import VLB, TrainingSet
from diffcli.diffusion.schedule import DDPM, NCSN
from diffcli.diffusion.sde import VE, VP, OneLevel
from diffcli.randomness import Draw

CHAINS = {
    "vp-linear": build("vp", "linear"),
    "subvp-cosine": build("subvp", "cosine"),
    "ve-geometric": build("ve", "geometric"),
    "flow-logit": build("flow", "logit"),
    "ddpm": VP(DDPM(T=30)),
    "ncsn": VE(NCSN(L=30, sigma_max=20.0)),
}
every_chain = pytest.mark.parametrize("sde", [pytest.param(sde, id=name) for name, sde in CHAINS.items()])
every_variance = pytest.mark.parametrize("variance", ["small", "large", "learned"])


class WithV(Exact):
    """The exact score of a mixture, with a v of its own: a function of x."""

    outputs = 2

    def __init__(self, sde, mixture, v=lambda xt: torch.sigmoid(xt + 0.3)):
        super().__init__(sde, mixture)
        self.v = v

    def _variance_parts(self, xt, t, **cond):
        return *self.parts(xt, t, **cond), self.v(xt)


class Signs:
    """Noise of every sign pattern, item after item: the mean of a quadratic function over it is its mean over N(0, I)."""

    def uniform(self, purpose, shape, dtype):
        return torch.full(shape, 0.37, dtype=dtype)

    def stratified(self, purpose, n):
        return (0.37 + torch.arange(n, dtype=torch.float64) / n) % 1

    def normal(self, purpose, shape, dtype):
        d = math.prod(shape[1:])
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)), dtype=dtype)
        return signs.repeat(shape[0] // len(signs), 1).view(shape)


class Ones(Signs):
    def normal(self, purpose, shape, dtype):
        return torch.ones(shape, dtype=dtype)


def loss_for(sde, variance="small", T=30, levels=None, hybrid=0.001):
    loss = VLB(None if sde.times is not None else T, variance, hybrid)
    loss.setup(WithV(sde, one_gaussian()), TrainingSet(lambda: None, (2,), levels))
    return loss


def expected_terms(loss, model, x0):
    """The mean of every term over the noise, (B, T + 1), exact for a model that is linear in x."""
    patterns = 2 ** x0[0].numel()
    return loss.terms(model, x0.repeat_interleave(patterns, 0), Signs()).view(len(x0), patterns, -1).mean(1)


def posterior(sde, s, t, x0, xt):
    """Mean (B, d) and variance of q(x_s | x_t, x_0), by the product of q(x_t | x_s) and q(x_s | x_0)."""
    ratio, std = sde.transition(s, t)
    precision = ratio**2 / std**2 + 1 / sde.sigma(s) ** 2
    return (ratio / std**2 * xt + sde.alpha(s) / sde.sigma(s) ** 2 * x0) / precision, 1 / precision


@every_variance
@every_chain
def test_a_term_is_a_kl_between_gaussians(sde, variance):
    """L_{i-1} = KL(q(x_{i-1} | x_i, x_0) || N(posterior mean at x0_hat, variance)), each by Bayes' rule, for i > 1."""
    mixture, x0 = mixture_2d(), mixture_2d().sample(7, generator(0))[0]
    recorder = Recorder(Exact(sde, mixture))
    recorder.outputs = 2
    recorder._variance_parts = lambda xt, t: (*recorder.parts(xt, t), torch.sigmoid(xt + 0.3))
    loss = loss_for(sde, variance)
    terms = loss.terms(recorder, x0, Draw(0, 0))
    levels = [t for _, t in recorder.calls]
    assert terms.shape == (7, len(levels) + 1)
    for i in range(1, len(levels)):
        (xt, t), s = recorder.calls[i], levels[i - 1][0]
        t = t[0]
        true, small = posterior(sde, s, t, x0, xt)
        mean, _ = posterior(sde, s, t, Exact(sde, mixture)(xt, t), xt)
        large = sde.transition(s, t)[1] ** 2
        v = torch.sigmoid(xt + 0.3)
        var = {"small": small, "large": large, "learned": large**v * small ** (1 - v)}[variance]
        kl = kl_divergence(Normal(true, small.sqrt()), Normal(mean, var.sqrt().expand_as(mean))).sum(1)
        assert torch.allclose(terms[:, i], kl, rtol=1e-6, atol=1e-9), (i, terms[:, i], kl)


@every_chain
def test_the_prior_term_is_a_kl_between_gaussians(sde):
    x0 = 3 * normal(0, 5, 2)
    loss = loss_for(sde)
    t = Chain.of(sde, loss.T).t[-1]
    eye = torch.eye(2, dtype=torch.float64)
    q = MultivariateNormal(sde.alpha(t) * x0, sde.sigma(t) ** 2 * eye)
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), sde.prior_std**2 * eye)
    found = loss.terms(Exact(sde, one_gaussian()), x0, Draw(0, 0))[:, -1]
    assert torch.allclose(found, kl_divergence(q, prior), rtol=1e-6, atol=1e-9)
    assert (found > 0).all()


@every_chain
def test_terms_of_a_gaussian_in_the_mean(sde):
    """E L_{i-1} = 1/2 (e^{2 lam_s} - e^{2 lam_t}) tr Cov(x0 | x_t), over data, noise: the small variance on any path."""
    gaussian, n = one_gaussian(), 4000
    loss, x0 = loss_for(sde, T=12), one_gaussian().sample(n, generator(3))[0]
    terms = loss.terms(Exact(sde, gaussian), x0, Draw(1, 0))[:, 1:-1]
    t = Chain.of(sde, loss.T).t
    snr = torch.exp(2 * sde.lam(t))
    variances = gaussian.variances[0]
    left = (variances / (1 + snr[1:, None] * variances)).sum(1)  # of the posterior, by Gaussian algebra
    z = (terms.mean(0) - 0.5 * (snr[:-1] - snr[1:]) * left) / (terms.std(0) / n**0.5)
    assert z.abs().max() < 4


def test_the_weights_on_the_ddpm_table():
    """(1 - alpha_i)^2 / (2 sigma_i^2 alpha_i (1 - abar_i)) ||eps - eps_theta||^2, + d/2 (r - 1 - ln r) for sigma_i^2 = beta_i."""
    T = 40
    betas = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
    alphas, bars = 1 - betas, (1 - betas).cumprod(0)
    sde, x0 = VP(DDPM(T=T)), normal(0, 6, 2)
    recorder = Recorder(Exact(sde, mixture_2d()))
    small = loss_for(sde).terms(recorder, x0, Draw(0, 0))
    large = loss_for(sde, "large").terms(recorder, x0, Draw(0, 0))
    for i in range(1, T):
        xt, t = recorder.calls[i]
        assert torch.allclose(t, f64((i + 1) / T))
        eps = (xt - bars[i].sqrt() * x0) / (1 - bars[i]).sqrt()
        error = (recorder.eps(xt, t) - eps).square().sum(1)
        weight = (1 - alphas[i]) ** 2 / (2 * alphas[i] * (1 - bars[i])) * error
        tilde = (1 - bars[i - 1]) / (1 - bars[i]) * betas[i]
        assert torch.allclose(small[:, i], weight / tilde, rtol=1e-6, atol=1e-10)
        r = tilde / betas[i]
        assert torch.allclose(large[:, i], weight / betas[i] + (r - 1 - r.log()), rtol=1e-6, atol=1e-10)


def test_what_the_large_variance_costs():
    """0.486 bits a dimension in all, for T = 1000 and linear betas."""
    gap = Chain.of(VP(DDPM()), None).gap[1:]
    assert (0.5 * (torch.exp(-gap) - 1 + gap)).sum().item() / math.log(2) == pytest.approx(0.486, abs=5e-4)


def test_the_first_variances():
    """betatilde_2 where the small one would be 0, beta_1 for the large one."""
    chain, t = Chain.of(VP(DDPM(T=100))), f64(0.01, 0.02)
    bar = VP(DDPM(T=100)).alpha(t) ** 2
    beta_2 = 1 - bar[1] / bar[0]
    assert torch.allclose(chain.log_small[0].exp(), (1 - bar[0]) / (1 - bar[1]) * beta_2, rtol=1e-9)
    assert torch.allclose((chain.log_small + chain.gap)[0].exp(), 1 - bar[0], rtol=1e-9)


def chain_nll(sde, model, T, variance, x0, v=None):
    """-log p(x_0) of the chain itself, which is Gaussian where x0_hat is linear in x: its law step by step from the prior."""
    t = Chain.of(sde, T).t
    d = x0.shape[1]
    eye = torch.eye(d, dtype=torch.float64)
    mean, cov = torch.zeros(d, dtype=torch.float64), sde.prior_std**2 * eye
    steps = [*zip(t.flip(0)[:-1], t.flip(0)[1:], strict=True)]
    for t, s in steps:
        offset = model(torch.zeros(1, d, dtype=torch.float64), t)[0]
        slope = (model(eye, t) - offset).T
        ratio, std = sde.transition(s, t)
        small = std**2 * sde.sigma(s) ** 2 / sde.sigma(t) ** 2
        a = ratio * (sde.sigma(s) / sde.sigma(t)) ** 2 * eye + small * sde.alpha(s) / sde.sigma(s) ** 2 * slope
        b = small * sde.alpha(s) / sde.sigma(s) ** 2 * offset
        w = v if v is not None else float(variance == "large")
        mean, cov = a @ mean + b, a @ cov @ a.T + std ** (2 * w) * small ** (1 - w) * eye
    (t, s) = steps[-1]
    offset = model(torch.zeros(1, d, dtype=torch.float64), s)[0]
    slope = (model(eye, s) - offset).T
    first_large = sde.sigma(s) ** 2
    first_small = sde.sigma(s) ** 2 / sde.sigma(t) ** 2 * sde.transition(s, t)[1] ** 2
    cov = slope @ cov @ slope.T + first_large**w * first_small ** (1 - w) * eye
    return -MultivariateNormal(slope @ mean + offset, (cov + cov.T) / 2).log_prob(x0)


@pytest.mark.parametrize("model", ["exact", "wrong"])
@every_variance
@every_chain
def test_the_bound_is_above_the_likelihood_of_its_own_chain(sde, variance, model):
    """Item by item: in the mean over the noise the sum of all terms is at least -log p(x_0), which is Gaussian here."""
    gaussian = one_gaussian()
    if model == "wrong":
        gaussian = GaussianMixture(f64(1.0), f64([-0.2, 0.4]), rotated(0.1, 0.9, 0.2)[None])
    x0, v = one_gaussian().sample(9, generator(0))[0], 0.4
    denoiser = WithV(sde, gaussian, lambda xt: torch.full_like(xt, v))
    loss = loss_for(sde, variance, T=8)
    bound = expected_terms(loss, denoiser, x0).sum(1)
    nll = chain_nll(sde, denoiser, loss.T, variance, x0, v if variance == "learned" else None)
    assert (bound > nll).all()
    assert (bound - nll).mean() > 1e-3


@pytest.mark.parametrize("T", [2, 5, 40])
def test_the_bound_is_tight_where_the_reverse_process_is_exact(T):
    """N(0, I) under VP: with the large variance every reverse step is the exact one, and the prior too."""
    unit = GaussianMixture(f64(1.0), f64([0.0, 0.0]), torch.eye(2, dtype=torch.float64)[None])
    sde, x0 = build("vp", "linear"), 1.5 * normal(0, 6, 2)
    bound = expected_terms(loss_for(sde, "large", T), Exact(sde, unit), x0).sum(1)
    assert torch.allclose(bound, -unit.log_prob(x0), rtol=1e-9)
    assert torch.allclose(chain_nll(sde, Exact(sde, unit), T, "large", x0), bound, rtol=1e-9)
    small = expected_terms(loss_for(sde, "small", T), Exact(sde, unit), x0).sum(1)
    assert (small - bound).abs().max() > 1e-3


def test_more_levels_tend_to_the_continuous_bound():
    """sum over t_i > t_0 of E L_{i-1} -> 1/2 int tr Cov(x0 | x) d snr = 1/2 sum log((1 + c snr_0)/(1 + c snr_1)), as 1/T."""
    sde, gaussian = build("vp", "linear"), one_gaussian()
    x0 = gaussian.sample(200, generator(0))[0]
    start, c = 0.25, gaussian.variances[0]
    # an item's own limit needs an integral; the mean over data is in closed form where the data's moments are the model's
    x0 = (x0 - x0.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x0.T, correction=0))).T
    x0 = x0 @ torch.linalg.cholesky(gaussian.covs[0]).T + gaussian.means[0]
    snr = torch.exp(2 * sde.lam(f64(start, 1.0)))
    limit = 0.5 * torch.log((1 + c * snr[0]) / (1 + c * snr[1])).sum()
    off = []
    for T in (40, 80, 160):
        terms = expected_terms(loss_for(sde, T=T), Exact(sde, gaussian), x0)
        off.append((terms[:, T // 4 : T].sum(1).mean() - limit).item())
    assert off[0] > off[1] > off[2] > 0
    assert off[0] / off[1] == pytest.approx(2, rel=0.1) and off[1] / off[2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("levels", [None, 16])
@every_chain
def test_one_level_an_item_is_unbiased(sde, variance, levels):
    """A batch of T copies of an item draws each level once, wherever the strata begin: its mean is the sum of all terms."""
    model, loss = Shifted(sde, mixture_2d(), 0.2), loss_for(sde, variance, levels=levels)
    T = len(Chain.of(sde, loss.T).t)
    for x in normal(4, 3, 2).clamp(-0.99, 0.99):
        whole = loss.terms(model, x[None], Ones()).sum()
        assert torch.allclose(loss(model, x.expand(T, 2), Ones()).mean(), whole, rtol=1e-9)


@pytest.mark.parametrize("count", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-4, 0.01, 0.3, 20.0])
def test_the_decoder_is_a_distribution_over_levels(count, std):
    """sum_k exp(-L_0(k)) = 1 for one pixel, wherever x0_hat lies, and each is the Gaussian's mass in the bin."""
    centres = (2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1
    for mean in (-3.0, -1.0, -0.113, 0.0, 0.51, 1.0, 4.0):
        nll = decoder(centres, centres - mean, f64(math.log(std))[0], count)
        assert torch.isfinite(nll).all()
        assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-12)
        edges = torch.cat([f64(-math.inf), centres[:-1] + 1 / count, f64(math.inf)])
        plain = Normal(f64(mean), f64(std)).cdf(edges).diff()
        assert torch.allclose(torch.exp(-nll), plain, rtol=1e-6, atol=1e-12)


def test_the_decoder_far_from_its_mean():
    """Deep in the tails -log Phi(z) is z^2/2 + log z + ..., never infinite, and its slope is finite, on both sides."""
    centres = (2 * torch.arange(256, dtype=torch.float64) + 1) / 256 - 1
    for side in (-1, 1):
        mean = torch.tensor(3.0 * side, dtype=torch.float64, requires_grad=True)
        nll = decoder(centres, centres - mean, f64(math.log(1e-3))[0], 256)
        k = 100
        z = (3 - side * centres[k] - 1 / 256) / 1e-3  # to the edge that is nearer to the mean
        assert nll[k].item() == pytest.approx(
            (0.5 * z**2 + torch.log(z) + 0.5 * math.log(2 * math.pi)).item(), rel=1e-6
        )
        (slope,) = torch.autograd.grad(nll[k], mean, retain_graph=True)
        assert slope.item() == pytest.approx(side * z.item() / 1e-3, rel=1e-3)
        (slope,) = torch.autograd.grad(nll.sum(), mean)
        assert torch.isfinite(slope)


@pytest.mark.parametrize("count", [17, 256])
def test_the_bin_is_the_items_own(count):
    """Dequantisation leaves the bound as it is; L_0 is the mass between k/N and (k + 1)/N of the data's range."""
    sde, model = CHAINS["ddpm"], Exact(CHAINS["ddpm"], mixture_2d())
    k = torch.tensor([[0, 1], [count - 1, 3], [count // 2, count - 2]])
    u = torch.rand(3, 2, dtype=torch.float64, generator=generator(0))
    recorder, loss = Recorder(model), loss_for(sde, levels=count)
    found = loss.terms(recorder, 2 * (k + u) / count - 1, Draw(0, 0))
    assert torch.equal(found, loss.terms(model, 2 * (k.double() + 0.5) / count - 1, Draw(0, 0)))
    single = loss.terms(model, (2 * (k + u) / count - 1).float(), Draw(0, 0))
    assert single.dtype == torch.float32 and torch.isfinite(single).all()
    xt, t = recorder.calls[0]
    chain = Chain.of(sde, None)
    at = Normal(model(xt, t), (0.5 * chain.log_small[0]).exp())
    low = torch.where(k == 0, -math.inf, 2 * k / count - 1).double()
    high = torch.where(k == count - 1, math.inf, 2 * (k + 1) / count - 1).double()
    mass = at.cdf(high) - at.cdf(low)
    assert torch.allclose(found[:, 0], -mass.log().sum(1), rtol=1e-6)


def test_points_have_the_gaussian_first_term():
    """L_0 = -log N(x_0; x0_hat(x_1), sigma_1^2)."""
    sde, x0 = CHAINS["ddpm"], normal(0, 5, 2)
    for variance, std in (("small", Chain.of(sde).log_small[0] / 2), ("large", sde.log_sigma(f64(1 / 30)[0]))):
        recorder = Recorder(Exact(sde, mixture_2d()))
        found = loss_for(sde, variance).terms(recorder, x0, Draw(0, 0))[:, 0]
        expected = -Normal(recorder.inner(*recorder.calls[0]), std.exp()).log_prob(x0).sum(1)
        assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("levels", [None, 256])
@every_variance
@every_chain
def test_float32_follows_float64(sde, variance, levels):
    model, loss = WithV(sde, mixture_2d()), loss_for(sde, variance, levels=levels)
    x0 = mixture_2d().sample(40, generator(0))[0].clamp(-0.99, 0.99).float()

    class Same:
        """The same noise in either precision."""

        def normal(self, purpose, shape, dtype):
            return Draw(0, 0).normal(purpose, shape).to(dtype)

    single, double = loss.terms(model, x0, Same()), loss.terms(model, x0.double(), Same())
    assert single.dtype == torch.float32
    assert torch.allclose(single.sum(1).double(), double.sum(1), rtol=2e-3)


def test_any_event_shape_is_the_flat_one():
    sde, x0 = CHAINS["ddpm"], normal(0, 6, 2)
    loss = loss_for(sde)
    flat = loss(Exact(sde, mixture_2d()), x0, Draw(0, 0))
    assert flat.shape == (6,)
    assert torch.allclose(loss(Exact(sde, mixture_2d()), x0.view(6, 1, 2, 1), Draw(0, 0)), flat, rtol=1e-12)


def test_the_same_draw_gives_the_same_loss():
    model, x0, loss = Exact(CHAINS["ddpm"], mixture_2d()), normal(0, 30, 2), loss_for(CHAINS["ddpm"])
    assert torch.equal(loss(model, x0, Draw(0, 1)), loss(model, x0, Draw(0, 1)))
    for other in (Draw(1, 1), Draw(0, 2), Draw(0, 1, rank=1)):
        assert not torch.equal(loss(model, x0, Draw(0, 1)), loss(model, x0, other))


def test_what_does_not_fit_is_refused():
    vp, data = build("vp", "linear"), TrainingSet(lambda: None, (2,))
    for arguments, words in [
        (dict(T=1), "T must be at least 2"),
        (dict(variance="none"), "small, large, learned"),
        (dict(hybrid=0.0), "hybrid must be above 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            VLB(**arguments)
    for loss, sde, words in [
        (VLB(variance="learned"), vp, "prediction.outputs=2"),
        (VLB(), OneLevel(), "levels=one"),
        (VLB(T=50), CHAINS["ddpm"], "30 levels"),
        (VLB(T=10), build("vp", "linear", t_min=0.95), "fewer than 2 levels"),
    ]:
        with pytest.raises(ValueError, match=words):
            loss.setup(Exact(sde, mixture_2d()), data)
    VLB(T=30).setup(Exact(CHAINS["ddpm"], mixture_2d()), data)
