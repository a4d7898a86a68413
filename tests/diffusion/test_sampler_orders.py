"""Every sampler converges, to the right answer, with the order it declares, on every SDE and schedule."""

import math
from functools import cache

import pytest
import torch
from cases import (
    PATHS,
    build,
    every_path,
    f64,
    generator,
    level,
    mixture_2d,
    mixture_of,
    no_noise,
    noised,
    one_gaussian,
    paths,
)
from sampler_cases import ODE, SDE, make, over
from scipy.special import ndtr
from scipy.stats import kstest

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import DPM2, RK45, sample

# of the issue that asks for these orders, then all the rest
USUAL = [("vp", "linear"), ("ve", "geometric")]
NAMED = [
    *USUAL,
    ("flow", "logit"),
    ("vp", "ddpm"),
    ("vp", "cosine"),
    ("subvp", "linear"),
    ("ve", "edm"),
    ("ve", "ncsn"),
]
FLOOR = 1e-9  # of errors: below it round-off is seen
LEAST = {3: 2.7, 4: 3.3}  # slopes of the higher orders, whose next term is felt


def on(pairs):
    return pytest.mark.parametrize("pair", [pytest.param(p, id="-".join(p)) for p in pairs])


@cache
def reference(pair, d=2):
    """The model, 16 starts, and the PF-ODE's ends from there to about 1e-10."""
    sde = build(*pair)
    model = Exact(sde, mixture_2d() if d == 2 else mixture_of(d))
    start, times = noised(sde, model.mixture, 16, sde.t_max), UniformLam()(sde, 1)
    return model, start, sample(model, RK45(1e-11), start, times, no_noise).x


def errors(pair, sampler, steps, d=2):
    model, start, end = reference(pair, d)
    got = sample(model, sampler, start, UniformLam()(model.sde, steps), no_noise).x
    return (got - end).norm(dim=1) / math.sqrt(d)


def check_order(pair, sampler, d=2):
    """The median item's error falls by 2^order when the steps double, to below what any wrong limit would leave."""
    if sampler.clock == "t" and build(*pair).times is not None:
        pytest.skip("a sampler that steps in t declares no order on a table")
    coarse, fine = errors(pair, sampler, 160, d), errors(pair, sampler, 320, d)
    first = 0.03 if sampler.clock == "lam" else 0.1  # steps even in lam are uneven in t
    assert fine.median() < {1: first, 2: 2e-3, 3: 2e-4, 4: 5e-5}[sampler.order]
    told = (coarse > FLOOR) & (fine > FLOOR)
    if told.sum() > 8:
        slope = torch.log2(coarse[told] / fine[told]).median().item()
        if sampler.declared_for:  # by its usual first steps it is at least of order 2, and mostly as good
            assert slope > 1.6
        elif sampler.order in LEAST:
            assert LEAST[sampler.order] <= slope < sampler.order + 0.7
        else:
            assert slope == pytest.approx(sampler.order, abs=0.15)


@over(ODE)
@on(USUAL)
def test_ode_samplers_converge_with_their_order(pair, sampler):
    check_order(pair, sampler)


@pytest.mark.heavy
@over(ODE)
@on([*NAMED[len(USUAL) :], *[p for p in PATHS if p not in NAMED]])
def test_ode_samplers_converge_with_their_order_on_every_sde_and_schedule(pair, sampler):
    check_order(pair, sampler)


@pytest.mark.heavy
@over(ODE)
@on(NAMED)
def test_ode_samplers_converge_with_their_order_in_64_dimensions(pair, sampler):
    check_order(pair, sampler, 64)


@pytest.mark.heavy  # a tangent within a tangent within a network call: 130 ms a step
@on([*USUAL, ("flow", "logit")])
def test_taylor_expansion_of_order_3_converges_with_it(pair):
    check_order(pair, make("dpm_taylor", order=3))


@pytest.mark.parametrize(
    "pair", [pytest.param(p, id="-".join(p), marks=() if p in USUAL else pytest.mark.heavy) for p in PATHS]
)
def test_rk45_meets_its_tolerance(pair):
    """The sum of its local errors, in evaluations that a first-order method could do nothing with."""
    model, start, end = reference(pair)
    got, nfe = sample(model, RK45(1e-5), start, UniformLam()(model.sde, 1), no_noise)
    assert (got - end).abs().max() < 2e-3  # the flow from t = 0.999 spreads them most
    assert nfe.max() < 300


@every_path
def test_rk45_gives_the_gaussians_closed_form(sde):
    """For one Gaussian the PF-ODE's map is mu_s + S_s^(1/2) S_t^(-1/2) (x - mu_t)."""
    model, times = Exact(sde, one_gaussian()), UniformLam()(sde, 1)
    x = noised(sde, model.mixture, 16, sde.t_max)
    (m_t, c_t), (m_s, c_s) = (level(model.mixture, sde, t) for t in times)
    (v_t, q), (v_s, q_s) = torch.linalg.eigh(c_t), torch.linalg.eigh(c_s)
    # the axes stay while the spreads change; eigh may order and sign them as it likes
    root_t, root_s = q @ v_t.sqrt().diag() @ q.T, q_s @ v_s.sqrt().diag() @ q_s.T
    expected = m_s + (x - m_t) @ torch.linalg.inv(root_t) @ root_s
    got = sample(model, RK45(1e-7), x, times, no_noise).x
    assert (got - expected).abs().max() < 1e-5


def projected(mixture, direction, alpha, sigma):
    """The exact distribution function of direction . x at the level (alpha, sigma)."""
    means = alpha * mixture.means @ direction
    stds = (alpha**2 * torch.einsum("i,kij,j->k", direction, mixture.covs, direction) + sigma**2).sqrt()

    def cdf(x):
        x = torch.as_tensor(x, dtype=torch.float64)
        return (mixture.weights * torch.from_numpy(ndtr(((x[:, None] - means) / stds).numpy()))).sum(1).numpy()

    return cdf


def check_law(sde, sampler):
    """Kolmogorov-Smirnov against the exact distribution function, along four directions."""
    mixture, rng, n = mixture_2d(), generator(5), 2500
    times = UniformLam()(sde, 300)
    start = noised(sde, mixture, n, sde.t_max, seed=3)

    def noise(counter):
        return torch.randn(start.shape, dtype=start.dtype, generator=rng)

    x = sample(Exact(sde, mixture), sampler, start, times, noise, last="stop").x
    for angle in f64(0.0, 0.8, 1.6, 2.4):
        direction = torch.stack([angle.cos(), angle.sin()])
        cdf = projected(mixture, direction, sde.alpha(times[-1]), sde.sigma(times[-1]))
        assert kstest((x @ direction).numpy(), cdf).pvalue > 1e-3


@over(SDE | {"dpm2": DPM2()})
def test_samples_of_a_mixture_have_its_law(sampler):
    check_law(build("vp", "linear"), sampler)


@pytest.mark.heavy
@over(SDE | {"dpm2": DPM2()})
@paths(PATHS[4::4])
def test_samples_of_a_mixture_have_its_law_on_other_paths(sde, sampler):
    check_law(sde, sampler)


def test_the_law_check_can_tell():
    """What the test above would see if the score were off by a tenth."""
    mixture = mixture_2d()
    x = 1.1 * mixture.sample(3000, generator(3))[0]
    cdf = projected(mixture, f64(1.0, 0.0), 1.0, 0.0)
    assert kstest(x[:, 0].numpy(), cdf).pvalue < 1e-3
