"""Paths: coefficients against the published closed forms, inverses, transitions, priors."""

import math

import pytest
import torch
from cases import all_paths, build, every_path, every_schedule, f64, normal, times_of
from scipy.integrate import quad

from diffcli.diffusion.schedule import Geometric, Linear
from diffcli.diffusion.sde import OU, VE, VP, Flow, SubVP


def relative(a, b):
    return ((a - b).abs() / b.abs()).max().item()


def linear(t):
    """beta(t) and its integral, Song et al. 2021, eq. 32."""
    return 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2


def cosine_angle(t):
    return math.pi / 2 * (t + 0.008) / 1.008


CLOSED = {
    # alpha, sigma, f, g^2 of the papers
    "vp-linear": lambda t, beta, b: (torch.exp(-b / 2), (-torch.expm1(-b)).sqrt(), -beta / 2, beta),
    "subvp-linear": lambda t, beta, b: (torch.exp(-b / 2), -torch.expm1(-b), -beta / 2, beta * -torch.expm1(-2 * b)),
    "ve-linear": lambda t, beta, b: (torch.ones_like(t), torch.expm1(b).sqrt(), 0 * t, beta * torch.exp(b)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_linear_schedule_gives_the_published_coefficients(name):
    sde = build(*name.split("-"))
    t = times_of(sde)
    for ours, published in zip(
        (sde.alpha(t), sde.sigma(t), sde.f(t), sde.g2(t)), CLOSED[name](t, *linear(t)), strict=True
    ):
        assert torch.allclose(ours, published, rtol=1e-10, atol=0)


def test_vp_cosine_gives_the_published_coefficients():
    sde = build("vp", "cosine")
    t = times_of(sde)
    a, b = cosine_angle(t), cosine_angle(f64(0.0))
    beta = (
        math.pi / 1.008 * torch.tan(a)
    )  # Nichol & Dhariwal: alphabar = cos(a)^2 / cos(b)^2, beta = -d log(alphabar) / dt
    assert relative(sde.alpha(t), torch.cos(a) / torch.cos(b)) < 1e-10
    assert relative(sde.sigma(t) ** 2, torch.sin(a - b) * torch.sin(a + b) / torch.cos(b) ** 2) < 1e-10
    assert relative(sde.f(t), -beta / 2) < 1e-10
    assert relative(sde.g2(t), beta) < 1e-10


def test_ve_geometric_gives_the_published_coefficients():
    low, high = 0.002, 80.0
    sde = VE(Geometric(low, high))
    t = times_of(sde)
    sigma = low * (high / low) ** t
    assert relative(sde.sigma(t), sigma) < 1e-10
    assert torch.equal(sde.alpha(t), torch.ones_like(t))
    assert torch.equal(sde.f(t), torch.zeros_like(t))
    assert relative(sde.g2(t), 2 * sigma**2 * math.log(high / low)) < 1e-10  # Song et al. 2021, eq. 30


@every_path
def test_alpha_and_sigma_solve_the_sde_of_f_and_g2(sde):
    """alpha = alpha(s) exp(int f) and sigma^2/alpha^2 = its value at s + int g^2/alpha^2."""
    # a table's f and g jump at its levels: between two of them
    s, t = (0.1, 0.7) if sde.times is None else sde.times[[-2, -1]].tolist()

    def at(fn, time):
        return fn(f64(time)).item()

    drift = quad(lambda u: at(sde.f, u), s, t, epsabs=0, epsrel=1e-11)[0] if at(sde.f, t) else 0.0
    spread = quad(lambda u: at(sde.g2, u) / at(sde.alpha, u) ** 2, s, t, epsabs=0, epsrel=1e-11)[0]
    assert at(sde.alpha, t) == pytest.approx(at(sde.alpha, s) * math.exp(drift), rel=1e-9)
    ratio2 = (at(sde.sigma, s) / at(sde.alpha, s)) ** 2 + spread
    assert at(sde.sigma, t) == pytest.approx(at(sde.alpha, t) * math.sqrt(ratio2), rel=1e-9)


@every_schedule
def test_what_a_schedule_means_on_each_sde(schedule):
    """VP alpha^2 = sigmoid(2l), sigma^2 = sigmoid(-2l); sub-VP sigma = sigmoid(-2l); VE sigma = e^-l."""
    t = torch.linspace(0.02, schedule.t_max, 30, dtype=torch.float64)
    alpha2, sigma2 = torch.sigmoid(2 * schedule(t)), torch.sigmoid(-2 * schedule(t))
    vp, subvp, ve = VP(schedule), SubVP(schedule), VE(schedule)
    assert relative(vp.alpha(t) ** 2, alpha2) < 1e-12 and relative(vp.sigma(t) ** 2, sigma2) < 1e-12
    assert relative(subvp.alpha(t) ** 2, alpha2) < 1e-12 and relative(subvp.sigma(t), sigma2) < 1e-12
    assert relative(ve.alpha(t), torch.ones_like(t)) < 1e-12 and relative(ve.sigma(t), (-schedule(t)).exp()) < 1e-12


@all_paths
def test_time_inverts_lam_which_falls(sde):
    t = times_of(sde, 201)
    lam = sde.lam(t)
    assert torch.isfinite(lam).all() and (lam.diff() < 0).all()
    assert torch.allclose(lam, (sde.alpha(t) / sde.sigma(t)).log(), rtol=1e-12, atol=1e-12)
    assert torch.allclose(sde.time(lam), t, rtol=1e-10, atol=1e-14)
    assert torch.allclose(sde.lam(sde.time(lam)), lam, rtol=0, atol=1e-11)


@every_schedule
def test_inverse_inverts_the_schedule(schedule):
    t = times_of(schedule, 201)
    assert torch.allclose(schedule.inverse(schedule(t)), t, rtol=1e-10, atol=1e-14)


@all_paths
def test_dlam_and_dlog_sigma_are_derivatives(sde):
    t = torch.linspace(0.05, 0.9, 18, dtype=torch.float64) + 4e-4  # not at the levels of a table
    h = 1e-5

    def slope(fn):
        return (8 * (fn(t + h) - fn(t - h)) - (fn(t + 2 * h) - fn(t - 2 * h))) / (12 * h)

    assert torch.allclose(sde.dlam(t), slope(sde.lam), rtol=1e-7)
    assert torch.allclose(sde.dlog_sigma(t), slope(sde.log_sigma), rtol=1e-7)
    assert torch.allclose(sde.f(t), slope(sde.log_alpha), rtol=1e-7, atol=1e-12)
    assert relative(sde.g2(t), -2 * sde.sigma(t) ** 2 * slope(sde.lam)) < 1e-7


@pytest.mark.parametrize("cls", [VP, SubVP])
def test_coefficients_are_right_where_the_schedule_is_exactly_zero(cls):
    """l = 0 is where the two branches of log(sigmoid) meet: a derivative through one alone is wrong there."""
    sde = cls(Geometric(0.5, 2.0))
    t = f64(0.5)
    assert sde.schedule(t).item() == 0.0
    beside = f64(0.5 - 1e-7, 0.5 + 1e-7)
    for fn in (sde.f, sde.g2, sde.dlam, sde.dlog_sigma):
        assert fn(t).item() == pytest.approx(fn(beside).mean().item(), rel=1e-6), fn.__name__


@all_paths
def test_coefficients_take_an_expanded_time(sde):
    """One time for the whole batch, as `t.expand(B)`, is a tensor like any other."""
    t = f64(0.3)
    for fn in (sde.alpha, sde.sigma, sde.lam, sde.f, sde.g2, sde.dlam, sde.dlog_sigma):
        assert torch.equal(fn(t.expand(4)), fn(t).repeat(4)), fn.__name__


@all_paths
def test_transition_is_that_of_the_path(sde):
    """It carries the marginal at s to that at t: its variance is sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2."""
    s, t = f64(0.05, 0.2, 0.5), f64(0.3, 0.9, 0.99)
    ratio, std = sde.transition(s, t)
    assert relative(ratio * sde.alpha(s), sde.alpha(t)) < 1e-12
    assert relative(ratio**2 * sde.sigma(s) ** 2 + std**2, sde.sigma(t) ** 2) < 1e-12


@all_paths
def test_transitions_compose(sde):
    """Chapman-Kolmogorov."""
    s, u, t = f64(0.01, 0.1, 0.3, 0.5), f64(0.02, 0.4, 0.31, 0.8), f64(0.5, 0.6, 0.9, 0.99)
    r_su, std_su = sde.transition(s, u)
    r_ut, std_ut = sde.transition(u, t)
    ratio, std = sde.transition(s, t)
    assert relative(r_ut * r_su, ratio) < 1e-12
    assert relative(r_ut**2 * std_su**2 + std_ut**2, std**2) < 1e-12


@all_paths
def test_a_short_transition_is_a_step_of_the_sde(sde):
    t, h = f64(0.1, 0.4, 0.8), 1e-7
    ratio, std = sde.transition(t, t + h)
    assert torch.allclose((ratio - 1) / h, sde.f(t + h / 2), rtol=1e-5, atol=1e-7)
    assert torch.allclose(std**2 / h, sde.g2(t + h / 2), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)
@all_paths
def test_perturb(sde, shape):
    x0, eps = normal(0, 5, *shape), normal(1, 5, *shape)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    batch = sde.perturb(x0, t, eps)
    for i in range(5):
        expected = sde.alpha(t[i]) * x0[i] + sde.sigma(t[i]) * eps[i]
        assert torch.allclose(batch[i], expected, rtol=1e-14, atol=1e-14)
        assert torch.allclose(sde.perturb(x0, t[i], eps)[i], expected, rtol=1e-14, atol=1e-14)
    assert sde.perturb(x0.float(), t, eps.float()).dtype == torch.float32


@all_paths
def test_prior(sde):
    """N(0, I), or N(0, sigma_max^2 I) for VE and what has no name; the log-density is that of what is drawn."""
    std = 1.0 if isinstance(sde, (VP, SubVP, Flow)) else sde.sigma(f64(sde.t_max)).item()
    std = 1.0 if isinstance(sde, OU) else std  # s^2/(2 theta)
    z = normal(0, 6, 3, 2)
    x = sde.sample_prior(z)
    assert torch.allclose(x, std * z, rtol=1e-12)
    expected = torch.distributions.Normal(f64(0.0), f64(std)).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(sde.prior_log_prob(x), expected, rtol=1e-12)
    assert sde.prior_log_prob(x.float()).dtype == torch.float64


def test_ve_prior_std_is_sigma_max():
    assert VE(Geometric(0.01, 30.0)).prior_std == pytest.approx(30.0, rel=1e-12)


def test_t_min_and_t_max_come_from_the_schedule_unless_given():
    assert VP(Linear()).t_min == Linear.t_min and VP(Linear(), 1e-3).t_min == 1e-3
    assert VP(Linear()).t_max == 1.0 and build("vp", "cosine").t_max == 0.9946
