"""Adams-Bashforth-Moulton in v, and the grid it is made for."""

import math
from functools import cache

import pytest
import torch
from cases import build, every_path, f64, mixture_2d, mixture_of, no_noise, noised, normal
from scipy.integrate import quad

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Scales, UniformLam
from diffcli.diffusion.samplers import RK45, AdamsMoulton, Deis, sample
from diffcli.diffusion.samplers.multistep import Row

VE = ("ve", "edm")


@cache
def problem(pair, d, tol):
    """The model, 16 starts, and the PF-ODE's ends from there."""
    sde, mixture = build(*pair), mixture_2d() if d == 2 else mixture_of(d)
    model, start = Exact(sde, mixture), noised(sde, mixture, 16, sde.t_max)
    return model, start, sample(model, RK45(tol), start, Scales()(sde, 1), no_noise).x


def end_error(pair, sampler, grid, steps, d=2, tol=1e-9):
    model, start, end = problem(pair, d, tol)
    got = sample(model, sampler, start, grid(model.sde, steps), no_noise).x
    return ((got - end).norm(dim=1) / math.sqrt(d)).median().item()


@pytest.mark.parametrize(("small", "large"), [(0.07, 8.0), (0.01, 50.0)])
@every_path
def test_scales_are_uniform_in_their_variable(sde, small, large):
    s = torch.exp(-sde.lam(Scales(small=small, large=large)(sde, 40)))
    gaps = torch.log((s + small) / (s + large)).diff()
    assert torch.allclose(gaps, gaps.mean().expand(40), rtol=1e-7)


def test_scales_wide_apart_are_uniform_in_lam():
    sde = build("vp", "linear")
    assert torch.allclose(Scales(small=1e-9, large=1e9)(sde, 20), UniformLam()(sde, 20), rtol=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("points", [1, 3, 5])
def test_weights_integrate_polynomials_of_their_degree(points, corrected):
    """`sum_j w_j q(tau_j) = ∫ q(tau) drho`, rho = arctan(s/c), by adaptive quadrature in s."""
    sampler, lam = AdamsMoulton(sigma_data=0.7, reach=9.0), [-4.4, -1.6, -0.9, -0.5, 0.3, 0.9]
    i, powers = 4, range(points + corrected)

    def tau(s):
        return math.log((s + 0.07) / (s + 8.0))

    readings = [lam[i + 1]] * corrected + [lam[i - j] for j in range(points)]
    w = sampler.weights(i, points, lam, corrected)
    for m in powers:
        got = sum(c * tau(math.exp(-l)) ** m for c, l in zip(w, readings, strict=True))  # noqa: E741
        a, b = math.exp(-lam[i]), math.exp(-lam[i + 1])
        assert got == pytest.approx(quad(lambda s, m=m: tau(s) ** m * 0.7 / (0.49 + s**2), a, b)[0], rel=1e-9)


def test_gaussian_data_of_its_standard_deviation_takes_one_step():
    sde = build(*VE)
    model = Exact(sde, GaussianMixture(f64(1.0), torch.zeros(1, 2), 0.49 * torch.eye(2)[None]))
    x, times = 80 * normal(0, 4, 2), Scales()(sde, 1)
    got = sample(model, AdamsMoulton(sigma_data=0.7), x, times, no_noise).x
    assert torch.allclose(got, x * math.sqrt((0.49 + 0.002**2) / (0.49 + 80**2)), rtol=1e-9)


def test_readings_and_corrections_follow_the_width_of_a_step():
    sde, sampler = build(*VE), AdamsMoulton()
    for steps in (5, 10, 40):
        plan = sampler.plan(sde, Scales()(sde, steps))
        for i, (row, corrector) in enumerate(zip(plan.rows, plan.correctors, strict=True)):
            h = plan.lam[i + 1] - plan.lam[i]
            assert len(row.g) == min(i + 1, 5 if 5 * h <= 1.5 else 4 if 4 * h <= 1.5 else 3)
            assert len(corrector.g) == len(row.g) + 1
            predicted_again = corrector == Row(row.x, [0.0, *row.g])
            assert predicted_again == (i > 0 and h > 1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_adds_an_order(order):
    """On its own grid, with its own starter."""
    sampler = AdamsMoulton(order=order, starter="rk")
    coarse, fine = (end_error(("vp", "linear"), sampler, Scales(), n) for n in (80, 160))
    assert order + 0.7 < math.log2(coarse / fine) < order + 1.7


def test_five_readings_lose_nothing_by_kuttas_start():
    coarse, fine = (end_error(("vp", "linear"), AdamsMoulton(starter="rk"), Scales(), n) for n in (60, 120))
    assert math.log2(coarse / fine) > 3.7 and fine < 1e-7


@pytest.mark.parametrize("pair", [("vp", "linear"), VE, ("flow", "logit"), ("vp", "ddpm")], ids="-".join)
def test_the_order_that_is_declared_on_uniform_lam(pair):
    """At least: what Kutta's start leaves is small, and the method itself has order 6."""
    sampler = AdamsMoulton(starter="rk")
    coarse, fine = (end_error(pair, sampler, UniformLam(), n) for n in (80, 160))
    assert not sampler.declared_for and math.log2(coarse / fine) > sampler.order - 0.3


@pytest.mark.parametrize("pair", [("vp", "linear"), VE], ids="-".join)
@pytest.mark.parametrize("d", [2, 64])
def test_few_evaluations_are_worth_twice_those_of_deis_on_uniform_lam(pair, d):
    """Deis of order 3 on uniform lam is the best that there was; by measurement 0.1 to 0.5 of its error."""
    for nfe, ratio in ((10, 0.7), (20, 0.4)):
        ours = end_error(pair, AdamsMoulton(), Scales(), nfe, d, 1e-6)
        assert ours < ratio * end_error(pair, Deis(3), UniformLam(), nfe, d, 1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamsMoulton(order=6), "order must lie between 1 and 5"),
        (lambda: AdamsMoulton(small=9.0), "small must lie between 0 and large"),
        (lambda: AdamsMoulton(reach=0.0), "reach must be above 0"),
        (lambda: AdamsMoulton(wide=-1.0), "wide not below it"),
        (lambda: Scales(small=0.0), "small must lie between 0 and large"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(ValueError, match=words):
        make()
