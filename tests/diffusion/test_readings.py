"""The readings of a denoiser: exactly interchangeable, exact where they should be, and the field of the PF-ODE."""

import pytest
import torch
from cases import PREDICTIONS, Fixed, build, every_path, f64, mixture_2d, no_noise, normal, times_of
from torch.func import jvp

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.prediction import X0, Eps, Score, V
from diffcli.diffusion.samplers import DPM2, sample
from diffcli.diffusion.sde import SDE

READINGS = ["x0", "eps", "v", "score", "velocity"]


def read(denoiser, name, xt, t):
    return denoiser(xt, t) if name == "x0" else getattr(denoiser, name)(xt, t)


def truth(sde, t, x0, eps):
    """All readings of (x0, eps) from their definitions."""
    a, s = (c.view(-1, *[1] * (x0.ndim - 1)) for c in (sde.alpha(t), sde.sigma(t)))
    da = (sde.f(t) * sde.alpha(t)).view_as(a)
    ds = (sde.dlog_sigma(t) * sde.sigma(t)).view_as(s)
    v, score, velocity = a * eps - s * x0, -eps / s, da * x0 + ds * eps
    return a * x0 + s * eps, dict(x0=x0, eps=eps, v=v, score=score, velocity=velocity)


def levels(sde):
    """Times where sigma/alpha >= 1e-4: below, x0 -> eps costs more than six of float64's digits on any path."""
    return times_of(sde, 24, start=max(sde.t_min, sde.time(f64(9.2)).item()))


def assert_rows_close(a, b, rel, size=None):
    error, size = (a - b).flatten(1).norm(dim=1), (b if size is None else size).flatten(1).norm(dim=1)
    assert (error <= rel * size).all(), (error / size).max().item()


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
@every_path
def test_every_prediction_gives_every_reading(sde, shape):
    t = levels(sde)
    xt, true = truth(sde, t, normal(0, len(t), *shape), normal(1, len(t), *shape))
    for predicted, cls in PREDICTIONS.items():
        denoiser = cls(sde, Fixed(true[predicted]))
        for name in READINGS:
            assert_rows_close(read(denoiser, name, xt, t), true[name], 1e-10)
        x0, eps = denoiser.x0_and_eps(xt, t)
        assert_rows_close(x0, true["x0"], 1e-10)
        assert_rows_close(eps, true["eps"], 1e-10)


@every_path
def test_round_trip_through_all_predictions(sde):
    t = levels(sde)
    eps = normal(1, len(t), 3)
    xt, _ = truth(sde, t, normal(0, len(t), 3), eps)
    x0 = Eps(sde, Fixed(eps))(xt, t)
    v = X0(sde, Fixed(x0)).v(xt, t)
    score = V(sde, Fixed(v)).score(xt, t)
    assert_rows_close(Score(sde, Fixed(score)).eps(xt, t), eps, 1e-10)


@pytest.mark.parametrize("name", PREDICTIONS)
@every_path
def test_velocity_is_that_of_the_probability_flow(sde, name):
    """velocity = f x - g^2/2 score, and velocity_lam = velocity / (dlam/dt)."""
    t = levels(sde)
    xt, true = truth(sde, t, normal(0, len(t), 3), normal(1, len(t), 3))
    denoiser = PREDICTIONS[name](sde, Fixed(true[name]))
    drift, pull = sde.f(t)[:, None] * xt, 0.5 * sde.g2(t)[:, None] * denoiser.score(xt, t)
    velocity = denoiser.velocity(xt, t)
    assert_rows_close(velocity, drift - pull, 1e-10, size=drift.abs() + pull.abs())  # they nearly cancel near t_max
    assert_rows_close(denoiser.velocity_lam(xt, t), velocity / sde.dlam(t)[:, None], 1e-9)


@pytest.mark.parametrize("own", PREDICTIONS)
@every_path
def test_float32_loses_nothing_in_the_networks_own_reading(sde, own):
    """Even at t_min, where sub-VP has sigma = 1e-6 and x0 -> eps in float32 would lose all digits."""
    t = f64(sde.t_min, sde.t_max).repeat(50)
    size = 1 / sde.sigma(t)[:, None] if own == "score" else 1.0
    out = (normal(0, 100, 4) * size).float()
    xt = (normal(1, 100, 4) * (sde.alpha(t) + sde.sigma(t))[:, None]).float()
    got = read(PREDICTIONS[own](sde, Fixed(out)), own, xt, t)
    assert got.dtype == torch.float32
    assert ((got - out).abs() <= 2e-7 * out.abs() + 1e-8 * size).all()


def test_subvp_has_sigma_of_a_millionth_at_t_min():
    """What makes the test above sharp."""
    sde = build("subvp", "linear")
    assert sde.sigma(f64(sde.t_min)).item() < 2e-6


@pytest.mark.parametrize("name", PREDICTIONS)
@every_path
def test_network_sees_unit_variance_and_a_thousand_t(sde, name):
    t = f64(0.01, 0.3, 0.9).repeat_interleave(4000)
    x0, eps = normal(0, len(t), 2), normal(1, len(t), 2)
    network = Fixed(torch.zeros_like(x0))
    PREDICTIONS[name](sde, network).eps(sde.perturb(x0, t, eps), t)
    (x, c_noise) = network.calls[0]
    assert torch.allclose(c_noise, 1000 * t)
    assert torch.allclose(x.view(3, -1).var(1), torch.ones(3, dtype=torch.float64), atol=0.06)


def test_network_runs_in_its_own_dtype_and_the_state_keeps_its():
    sde = build("vp", "linear")
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.zeros(1))
    seen = []
    network.forward = lambda x, c: seen.append((x.dtype, c.dtype, c.shape)) or x
    assert Eps(sde, network)(normal(0, 5, 2), torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float64
    assert seen == [(torch.float32, torch.float32, (5,))]


@every_path
def test_scalar_time_is_that_time_for_every_item(sde):
    model, x = Exact(sde, mixture_2d()), normal(0, 7, 2)
    t = torch.tensor(0.4, dtype=torch.float64)
    for name in [*READINGS, "velocity_lam"]:
        assert_rows_close(read(model, name, x, t), read(model, name, x, t.repeat(7)), 1e-12)


@every_path
def test_a_scalar_time_is_differentiated_like_the_batchs(sde):
    """Forward: the kept coefficients of a time of a grid have no tangent."""
    model, x, t = Exact(sde, mixture_2d()), normal(0, 3, 2), torch.tensor(0.4, dtype=torch.float64)
    for name in ("x0", "eps"):
        read(model, name, x, t)  # kept by now
        scalar, rows = (
            jvp(lambda t, at=at, name=name: read(model, name, x, at(t)), (t,), (torch.ones_like(t),))[1]
            for at in (lambda t: t, lambda t: t.expand(3))
        )
        assert torch.allclose(scalar, rows, rtol=1e-9) and rows.abs().max() > 1e-3


class Net(torch.nn.Module):
    def forward(self, x, c_noise):
        return torch.tanh(x)


class Learned(SDE):
    """`alpha = 1, sigma = e^{-l (1 - t)}`, l a parameter."""

    def __init__(self):
        super().__init__()
        self.l = torch.nn.Parameter(torch.tensor(5.0, dtype=torch.float64))
        self._set_range(0.0, 1.0)

    def log_alpha(self, t):
        return torch.zeros_like(t)

    def log_sigma(self, t):
        return -self.l * (1 - t)

    def time(self, lam):
        return 1 - lam / self.l


@torch.no_grad()
def test_the_coefficients_of_an_sde_that_learns_are_those_of_now():
    """Neither the denoiser's nor a grid's are kept."""
    used, x, t = Learned(), normal(0, 3, 2), f64(0.5)[0]
    times, sampler, model = f64(0.9, 0.5, 0.1), DPM2(), Eps(used, Net())
    model.eps(x, t), sample(model, sampler, x, times, no_noise)
    used.l.fill_(3.0)
    new = Eps(Learned(), Net())
    new.sde.l.fill_(3.0)
    for a, b in ((model, new), (V(used, Net()), V(new.sde, Net()))):
        assert torch.equal(a.eps(x, t), b.eps(x, t)) and torch.equal(a(x, t), b(x, t))
    assert torch.equal(sample(model, sampler, x, times, no_noise).x, sample(new, DPM2(), x, times, no_noise).x)


@every_path
def test_exact_is_the_posterior_mean(sde):
    """E[x0 | xt] of one component by the Gaussian conditioning formula, mixed by the posterior weights."""
    mixture, t = mixture_2d(), torch.tensor(0.35, dtype=torch.float64)
    model, x = Exact(sde, mixture), normal(0, 9, 2) * 2
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    eye = torch.eye(2, dtype=torch.float64)
    means, log_w = [], []
    for w, m, c in zip(mixture.weights, mixture.means, mixture.covs, strict=True):
        s = alpha**2 * c + sigma**2 * eye
        means.append(m + (alpha * c @ torch.linalg.solve(s, (x - alpha * m).T)).T)
        log_w.append(w.log() + torch.distributions.MultivariateNormal(alpha * m, s).log_prob(x))
    posterior = torch.softmax(torch.stack(log_w), 0)[..., None]
    assert_rows_close(model(x, t), (posterior * torch.stack(means)).sum(0), 1e-10)


def test_a_reading_in_which_x_cancels_is_the_network_output():
    """Noise as Eps predicts it loses nothing to an x that is large beside it, also of a time of a grid."""
    x, t = 1e20 * normal(0, 5, 3), torch.tensor(0.3, dtype=torch.float64)
    model = Eps(build("vp", "linear"), Fixed(normal(1, 5, 3)))
    torch.testing.assert_close(model.eps(x, t), normal(1, 5, 3), rtol=1e-12, atol=0)
