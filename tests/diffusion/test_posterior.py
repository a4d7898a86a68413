"""Posteriors of measurements: Bayes' rule for Gaussians in closed form, what is known of the approximations, and what they cost."""

import math

import pytest
import torch
from affine_walk import affine_map
from cases import PREDICTIONS, Fixed, f64, level, mixture_2d, normal, one_gaussian, rotated, usual_paths
from sampler_cases import make
from torch import nn

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.guidance import ClassifierFree
from diffcli.diffusion.guidance.base import Wrapper
from diffcli.diffusion.guidance.posterior import Posterior
from diffcli.diffusion.inverse import Custom, Grey, Identity, Mask, Matrix
from diffcli.diffusion.prediction import Eps, Velocity
from diffcli.diffusion.samplers import sample
from diffcli.diffusion.schedule import Constant, Cosine, Geometric, Linear, Logit
from diffcli.diffusion.sde import OU, VE, VP, Flow, SubVP
from diffcli.diffusion.sde.one import OneLevel

SDES = {
    "vp": VP(Linear()),
    "cosine": VP(Cosine()),
    "subvp": SubVP(Constant()),
    "ve": VE(Geometric(0.01, 50)),
    "flow": Flow(Logit()),
    "ou": OU(),
}
every_sde = pytest.mark.parametrize("sde", [pytest.param(sde, id=name) for name, sde in SDES.items()])
METHODS = ("jacobian", "pigdm", "dps", "replacement")


def gaussian(d: int = 5, isotropic: float | None = None) -> GaussianMixture:
    a = normal(1, d, d)
    cov = torch.eye(d).double() * isotropic**2 if isotropic else a @ a.T / d + 0.1 * torch.eye(d).double()
    return GaussianMixture(f64(1.0), normal(2, 1, d), cov[None])


def given_y(mixture: GaussianMixture, matrix, noise: float, y) -> GaussianMixture:
    """Bayes' rule: each component by its Kalman gain, each weight by the evidence."""
    weights, means, covs = [], [], []
    for w, m, c in zip(mixture.weights, mixture.means, mixture.covs, strict=True):
        s = matrix @ c @ matrix.T + noise**2 * torch.eye(len(matrix)).double()
        gain = c @ matrix.T @ torch.linalg.inv(s)
        miss = y - matrix @ m
        weights.append(w.log() - 0.5 * (miss @ torch.linalg.solve(s, miss) + torch.logdet(s)))
        means.append(m + gain @ miss)
        covs.append(c - gain @ matrix @ c)
    covs = torch.stack(covs)
    return GaussianMixture(torch.softmax(torch.stack(weights), 0), torch.stack(means), (covs + covs.mT) / 2)


def operator_of(matrix) -> Matrix:
    operator = Matrix(matrix)
    operator.setup(matrix.shape[1:])
    return operator


class Bound(Wrapper):
    """A posterior given the same y for every item."""

    def __init__(self, inner, y):
        super().__init__(inner)
        self.y = y

    def parts(self, xt, t, **cond):
        return self.inner.evaluate(xt, t, measurement=self.y.expand(len(xt), -1), **cond)


class Ideal(nn.Module):
    """The network of a prediction that makes its denoiser the exact one."""

    def __init__(self, exact: Exact):
        super().__init__()
        self.exact = exact

    def forward(self, u, c_noise):
        t = c_noise.double() / 1000
        x = u / self.made.c_in(t)[:, None]
        c_skip, c_out = self.made.skip_and_out(t)
        return (self.exact(x, t) - c_skip[:, None] * x) / c_out[:, None]


@every_sde
@pytest.mark.parametrize("noise", [0.3, 0.01])
def test_with_the_jacobian_it_is_bayes_rule_for_any_gaussian(sde, noise):
    data, matrix, y = gaussian(), normal(3, 3, 5), normal(5, 4, 3)
    model = Posterior(Exact(sde, data), operator_of(matrix), noise=noise, iterations=3)
    t = f64(0.05, 0.3, 0.6, 0.95) * sde.t_max
    x = normal(4, 4, 5) * (1 + sde.sigma(t)[:, None])
    for i in range(4):
        truth = Exact(sde, given_y(data, matrix, noise, y[i]))
        for reading in ("score", "forward", "eps"):
            got = getattr(model, reading)(x, t, measurement=y)[i]
            exact = getattr(truth, reading)(x[i : i + 1], t[i])[0]
            assert torch.allclose(got, exact, rtol=1e-6, atol=1e-7 * exact.abs().max()), reading
    # one time for all is the same
    assert torch.allclose(model(x[:1], t[0], measurement=y[:1]), model(x, t, measurement=y)[:1], rtol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_the_jacobian_it_is_bayes_rule_whatever_is_predicted(prediction):
    sde, data, matrix, y = SDES["vp"], gaussian(), normal(3, 2, 5), normal(5, 1, 2)
    network = Ideal(Exact(sde, data))
    network.__dict__["made"] = made = PREDICTIONS[prediction](sde, network)
    model = Posterior(made, operator_of(matrix), noise=0.2, iterations=2)
    truth, x = Exact(sde, given_y(data, matrix, 0.2, y[0])), normal(4, 1, 5)
    for t in f64(0.05, 0.5, 0.95):
        exact = truth.score(x, t)
        assert torch.allclose(model.score(x, t, measurement=y), exact, rtol=1e-6, atol=1e-6 * exact.abs().max())


@usual_paths
@pytest.mark.parametrize("sampler", ["dpm2", "ancestral"])
@pytest.mark.parametrize("method", ["jacobian", "pigdm"])
def test_samples_follow_the_exact_posterior(sde, sampler, method):
    """The mean and the covariance of a walk on a Gaussian are known without drawing it; they converge at the sampler's order."""
    c, noise, y, matrix = 0.6, 0.4, f64(0.5), f64([1.0, -0.5])
    data = (
        one_gaussian()
        if method == "jacobian"
        else GaussianMixture(f64(1.0), f64([0.7, -1.2]), c**2 * rotated(0, 1, 1)[None])
    )
    truth = given_y(data, matrix, noise, y)
    model = Bound(Posterior(Exact(sde, data), operator_of(matrix), noise=noise, method=method, data_std=c), y)
    order, laws = (2 if sampler == "dpm2" else 1), []
    for steps in (30, 60):
        lam = sde.lam(f64(sde.t_max, 0.02))
        times = sde.time(torch.linspace(*lam.tolist(), steps + 1, dtype=torch.float64)).clamp(max=sde.t_max)
        a, b, z = affine_map(make(sampler), model, times)
        (mean, cov), (end_mean, end_cov) = (level(truth, sde, t) for t in times[[0, -1]])
        assert torch.allclose(a @ mean + b, end_mean, atol=1e-9)
        laws.append(a @ cov @ a.T + z @ z.T)
    off = [((cov - end_cov).norm() / end_cov.norm()).item() for cov in laws]
    assert off[1] < 0.65**order * off[0]
    limit = (2**order * laws[1] - laws[0]) / (2**order - 1)  # Richardson: the law of infinitely many steps
    assert (limit - end_cov).norm() / end_cov.norm() < (1e-3 if order == 2 else 0.06)
    # and the prior law is another
    prior_mean, prior_cov = level(data, sde, times[-1])
    assert (prior_mean - end_mean).norm() > 0.1 and (prior_cov - end_cov).norm() / end_cov.norm() > 0.3


def test_pigdm_is_exact_for_isotropic_data_alone():
    sde, c, matrix, y = SDES["vp"], 0.7, normal(3, 3, 5), normal(5, 4, 3)
    t = f64(0.05, 0.3, 0.6, 0.95)
    x = normal(4, 4, 5)
    for noise in (0.3, 0.0):
        gaps = {}
        for name, data in (("isotropic", gaussian(isotropic=c)), ("anisotropic", gaussian())):
            exact, pigdm = (
                Posterior(Exact(sde, data), operator_of(matrix), noise, m, data_std=c, iterations=5)(
                    x, t, measurement=y
                )
                for m in ("jacobian", "pigdm")
            )
            gaps[name] = (exact - pigdm).abs().max(1).values
        assert (gaps["isotropic"] < 1e-8).all()
        assert (gaps["anisotropic"] > 1e-3).all() and gaps["anisotropic"].max() > 0.3


@usual_paths
def test_dps_at_one_level_is_the_likelihood_without_the_posterior_covariance(sde):
    c, s = 0.5, 0.8
    data, y, x = gaussian(3, isotropic=c), normal(5, 2, 3), normal(4, 2, 3)
    operator = Identity()
    operator.setup((3,))
    for t in f64(0.05, 0.4, 0.9):
        v = c**2 * sde.sigma(t) ** 2 / (c**2 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
        dps = Posterior(Exact(sde, data), operator, math.sqrt(s**2 + v), "dps")(x, t, measurement=y)
        exact = Posterior(Exact(sde, data), operator, s)(x, t, measurement=y)
        assert torch.allclose(dps, exact, rtol=1e-9)


@pytest.mark.parametrize("s", [1.0, 0.75])
def test_the_bias_of_dps(s):
    """Of its PF-ODE for data N(0, c^2), y = x0 + s n: mean 2 sqrt(a) F(sqrt(a)) y and variance c^2 e^{-2a}, a = c^2/(2 s^2)."""
    sde, c, y = VE(Geometric(1e-3, 100)), 0.7, f64(0.9, -0.4)
    data = GaussianMixture(f64(1.0), f64([0.0, 0.0]), c**2 * torch.eye(2).double()[None])
    operator = Identity()
    operator.setup((2,))
    model = Bound(Posterior(Exact(sde, data), operator, s, "dps"), y)
    times = sde.time(torch.linspace(*sde.lam(f64(1.0, 0.0)).tolist(), 61, dtype=torch.float64)).clamp(0, 1)
    a, b, _ = affine_map(make("dpm3"), model, times)
    cov, k = a @ a.T * sde.prior_std**2, c**2 / (2 * s**2)
    # F(x) = e^{-x^2} int_0^x e^{q^2} dq, less the little that lies beyond the prior's sigma
    q = torch.linspace(c / math.hypot(c, sde.prior_std), 1, 2001, dtype=torch.float64)
    dawson = math.sqrt(k) * torch.trapezoid(torch.exp(k * (q**2 - 1)), q)
    assert torch.allclose(b, 2 * math.sqrt(k) * dawson * y, rtol=1e-4)
    assert torch.allclose(cov, c**2 * math.exp(-2 * k) * torch.eye(2).double(), rtol=2e-4, atol=1e-9)
    exact = c**2 / (1 + 2 * k)
    assert (cov.diagonal() < 0.95 * exact).all()  # too sure of itself


def test_in_a_mixture_the_jacobian_form_becomes_exact_as_the_noise_goes():
    """Near the data one component holds x0, and its posterior is Gaussian; far from them it is not, and the form errs."""
    sde, data, matrix, noise, y = SDES["vp"], mixture_2d(), f64([1.0, 0.4]), 0.3, f64(0.8)
    model = Posterior(Exact(sde, data), operator_of(matrix), noise, iterations=2)
    truth = Exact(sde, given_y(data, matrix, noise, y))
    x, _ = data.sample(200, torch.Generator().manual_seed(0))
    errors = []
    for t in f64(0.3, 0.05, 0.01):
        xt = sde.perturb(x, t, normal(3, 200, 2))
        errors.append((model(xt, t, measurement=y.expand(200, 1)) - truth(xt, t)).square().sum(1).mean().sqrt().item())
    assert errors[0] > 0.03 and errors[2] < 0.01 * errors[0] and errors[1] < errors[0]


class Rough(nn.Module):
    """A network like a trained one: its Jacobian is neither symmetric nor positive."""

    def __init__(self, d: int):
        super().__init__()
        self.weights = [0.8 * normal(40 + i, d, d) / math.sqrt(d) for i in range(3)]

    def forward(self, x, c_noise):
        for w in self.weights:
            x = torch.tanh(x @ w.to(x))
        return x


@every_sde
@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_no_network_drives_it_out_of_bounds(sde, method, noise):
    """Where a Jacobian means nothing the fit still does not become worse, at any level, and all stays finite."""
    operator = operator_of(normal(3, 3, 8))
    model = Posterior(Eps(sde, Rough(8)), operator, noise, method)
    t = torch.linspace(sde.t_min, sde.t_max, 32, dtype=torch.float64).clamp(min=1e-4)
    x = (normal(4, 32, 8) * (sde.alpha(t) + sde.sigma(t))[:, None]).float()
    y = normal(5, 32, 3).float()
    before, after = model.inner(x, t), model(x, t, measurement=y)
    assert after.isfinite().all() and after.dtype == torch.float32
    misfit = [(y - operator(x0)).norm(dim=1) for x0 in (before, after)]
    assert (misfit[1] <= misfit[0] * 1.001 + 1e-4 * before.abs().max(1).values).all()
    assert (misfit[1] < 0.9 * misfit[0]).sum() > 4 or method == "dps"


def test_the_measurement_is_fitted_though_a_network_has_no_symmetric_jacobian():
    sde, operator = SDES["vp"], operator_of(normal(3, 3, 8))
    model = Posterior(Eps(sde, Rough(8)), operator, iterations=3)  # as many as there are measurements
    t = torch.linspace(0.05, 0.95, 16, dtype=torch.float64)
    x, y = normal(4, 16, 8), normal(5, 16, 3)
    before = (y - operator(model.inner(x, t))).norm(dim=1)
    assert ((y - operator(model(x, t, measurement=y))).norm(dim=1) < 1e-6 * before).all()


@usual_paths
@pytest.mark.parametrize("method", METHODS)
def test_known_coordinates_are_kept_and_the_others_vary(sde, method):
    data, mask = mixture_of_five(), Mask(f64(1, 0, 1, 0, 0))
    mask.setup((5,))
    y = normal(5, 1, 5)[0].float()
    y[1] = math.nan  # what is not known may hold anything
    model = Bound(Posterior(Exact(sde, data), mask, 0.0, method, data_std=0.8), y)
    for name in ("ddim", "dpm2", "ancestral"):
        lam = sde.lam(f64(sde.t_max, 0.01))
        times = sde.time(torch.linspace(*lam.tolist(), 16, dtype=torch.float64)).clamp(max=sde.t_max)
        g = torch.Generator().manual_seed(0)
        sampler = make(name)
        x = walk_to_x0(sampler, model, sde.sample_prior(torch.randn(64, 5, generator=g)), times, g)
        assert torch.allclose(x[:, [0, 2]], y[[0, 2]].expand(64, 2), rtol=0, atol=1e-6)
        assert x.isfinite().all() and (x[:, [1, 3, 4]].std(0) > 0.1).all()


def mixture_of_five() -> GaussianMixture:
    one = gaussian()
    return GaussianMixture(f64(0.5, 0.5), torch.cat([one.means, -one.means]), one.covs.repeat(2, 1, 1) * 0.3)


def walk_to_x0(sampler, model, start, times, g):
    return sample(model, sampler, start, times, lambda i: torch.randn(start.shape, generator=g), "denoise").x


def test_the_posterior_of_a_label_is_that_of_its_component():
    sde, data, matrix, noise, y = SDES["vp"], mixture_2d(), f64([1.0, 0.4]), 0.3, normal(5, 3, 1)
    inner = ClassifierFree(Exact(sde, data), scale=0.0)
    model, label, x, t = (
        Posterior(inner, operator_of(matrix), noise),
        torch.arange(3),
        normal(4, 3, 2),
        f64(0.1, 0.4, 0.8),
    )
    got = model.score(x, t, measurement=y, label=label)
    for k in range(3):
        alone = GaussianMixture(f64(1.0), data.means[k : k + 1], data.covs[k : k + 1])
        exact = Exact(sde, given_y(alone, matrix, noise, y[k])).score(x[k : k + 1], t[k])[0]
        assert torch.allclose(got[k], exact, rtol=1e-7, atol=1e-8)


def test_a_measurement_that_is_not_linear():
    """dps is the gradient of the misfit of x0_hat: `(sigma^2/alpha) grad_x -||y - A(x0_hat(x))||^2 / (2 s^2)`."""
    sde, data, s = SDES["vp"], gaussian(isotropic=0.4), 2.0
    operator = Custom(lambda x: torch.stack([x[:, :2].square().sum(1), x[:, 3].sin()], 1))
    operator.setup((5,))
    exact, x, y, t = Exact(sde, data), normal(4, 4, 5), normal(5, 4, 2), f64(0.05, 0.3, 0.6, 0.9)
    leaf = x.clone().requires_grad_()
    loss = (y - operator(exact(leaf, t))).square().sum() / (2 * s**2)
    (slope,) = torch.autograd.grad(loss, leaf)
    gain = (sde.sigma(t) ** 2 / sde.alpha(t))[:, None]
    got = Posterior(exact, operator, s, "dps")(x, t, measurement=y)
    assert torch.allclose(got - exact(x, t), -gain * slope, rtol=1e-9, atol=1e-12)
    # without noise it goes as far as the fit becomes better
    near = Posterior(exact, operator, 0.0, "dps")(x, t, measurement=y)
    assert near.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_what_it_costs(method):
    """One evaluation an item, no graph kept, and no item changed by its neighbours."""
    sde = SDES["vp"]
    mask = Mask(f64(1, 1, 0, 0, 1))
    mask.setup((5,))
    network = Rough(5)
    network.scale = nn.Parameter(torch.ones((), dtype=torch.float64))  # its gradient is nobody's wish
    model = Posterior(Eps(sde, network), mask, 0.0 if method == "replacement" else 0.1, method)
    x, y, t = normal(4, 6, 5), normal(5, 6, 5), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    with torch.no_grad():
        whole = model(x, t, measurement=y)
    assert evaluations(model) == 6 and not whole.requires_grad and network.scale.grad is None
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], measurement=y[i : i + 1]) for i in range(6)])
    assert torch.allclose(whole, alone, rtol=1e-9, atol=1e-10)


class Proud(nn.Module):
    """A network that will not be differentiated."""

    def forward(self, x, c_noise):
        assert not torch.is_grad_enabled() and not x.requires_grad
        return x / 2


def test_replacement_needs_no_derivative_and_the_others_do():
    mask = Mask(f64(1, 0))
    mask.setup((2,))
    x, t = normal(4, 3, 2), f64(0.5).expand(3)
    with torch.no_grad():
        Posterior(Eps(SDES["vp"], Proud()), mask, method="replacement")(x, t, measurement=x)
        make("dpm_taylor").setup(Posterior(Eps(SDES["vp"], Proud()), mask, method="replacement"))
        for method in METHODS[:3]:
            with pytest.raises(ValueError, match="gradient inside it"):  # which differentiates forward
                make("dpm_taylor").setup(Posterior(Eps(SDES["vp"], Proud()), mask, method=method))
            with pytest.raises(AssertionError):
                Posterior(Eps(SDES["vp"], Proud()), mask, method=method)(x, t, measurement=x)


def test_a_network_that_ignores_x_and_a_scale_of_zero():
    sde, operator = SDES["vp"], operator_of(normal(3, 2, 5))
    x, y, t = normal(4, 3, 5), normal(5, 3, 2), f64(0.5)[0]
    fixed = Eps(sde, Fixed(normal(6, 3, 5)))
    for method in METHODS[:3]:
        assert Posterior(fixed, operator, 0.1, method)(x, t, measurement=y).isfinite().all()
        plain = Posterior(fixed, operator, 0.1, method, scale=0.0)
        assert torch.equal(plain(x, t, measurement=y), fixed(x, t))


def test_refusals():
    sde, mask, abs_, grey = SDES["vp"], Mask(), Custom(torch.abs), Grey()
    for operator, shape in ((mask, (5,)), (abs_, (5,)), (grey, (3, 2, 2))):
        operator.setup(shape)
    exact = Exact(sde, gaussian())

    def refused(words, *args, **settings):
        with pytest.raises(ValueError, match=words):
            Posterior(*args, **settings)

    refused("method=jacobian.pigdm.dps fit", exact, grey, method="replacement")
    for method in ("jacobian", "pigdm"):
        refused("method=dps alone fits", exact, abs_, method=method)
    refused("masks, and this measurement is none", exact, abs_, method="replacement")
    refused("free field", Velocity(sde, Fixed(torch.zeros(1)), free=True), mask)
    refused("without noise", Eps(OneLevel(1.0, 0.0), Fixed(torch.zeros(1))), mask)
    refused("noise", exact, mask, noise=-0.1)
    refused("scale", exact, mask, scale=-1.0)
    refused("no scale", exact, mask, method="replacement", scale=2.0)
    refused("data_std", exact, mask, data_std=0.0)
    refused("iterations", exact, mask, iterations=0)
    refused("method must be one of", exact, mask, method="repaint")
    with pytest.raises(ValueError, match="measurement"):
        Posterior(exact, mask)(normal(1, 2, 5), f64(0.5)[0])
    assert isinstance(
        Posterior(Eps(OneLevel(1.0, 0.1), Fixed(torch.zeros(1))), mask), Denoiser
    )  # Langevin's score of x_t given y
