"""Samplers with noise against their papers' algorithms, written down again in sigma alone (alpha = 1)."""

import math
from itertools import pairwise

import pytest
import torch
from cases import Recorder, build, mixture_2d, normal, paths

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import Karras, UniformLam
from diffcli.diffusion.samplers import (
    DDIM,
    DPMpp2MSDE,
    DPMpp3MSDE,
    DPMppSDE,
    EDMChurn,
    EulerAncestral,
    EulerMaruyama,
    ReverseDiffusion,
    SASolver,
    sample,
)


def ve():
    """The model, x at the largest level, the times, sigma at each."""
    sde = build("ve", "edm")
    times = Karras()(sde, 9)
    return Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 6, 2)), times, sde.sigma(times).tolist()


def z(counter):
    """Every counter's own noise."""
    return normal(sum(map(ord, str(counter))), 6, 2)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_dpmpp_2m_sde(eta):
    """x = sigma_s/sigma_t e^{-k h} x + (1 - e^{-h - k h}) D + sigma_s sqrt(1 - e^{-2 k h}) z, k = eta^2 (k-diffusion's eta)."""
    model, x, times, sigma = ve()
    y, old, h_last, k = x, None, None, eta**2
    for i in range(len(times) - 1):
        x0, h = model(y, times[i]), math.log(sigma[i] / sigma[i + 1])
        d = x0 if old is None else x0 + (x0 - old) * h / (2 * h_last)
        noise = sigma[i + 1] * math.sqrt(1 - math.exp(-2 * k * h)) * z(i + 1)
        y = sigma[i + 1] / sigma[i] * math.exp(-k * h) * y + (1 - math.exp(-(1 + k) * h)) * d + noise
        old, h_last = x0, h
    assert close(sample(model, DPMpp2MSDE(eta), x, times, z, "stop").x, y)


@pytest.mark.parametrize("released", [True, False])
def test_dpmpp_3m_sde(released):
    """By the parabola through three readings and by k-diffusion's, in which its second difference is halved."""
    model, x, times, sigma = ve()
    y, k, readings = x, 0.49, []
    lam = [-math.log(s) for s in sigma]
    for i in range(len(times) - 1):
        h = lam[i + 1] - lam[i]
        big = (1 + k) * h
        readings.insert(0, (lam[i], model(y, times[i])))
        (_, x0), *older = readings[:3]
        step = (1 - math.exp(-big)) * x0
        if older:
            slopes = [(a[1] - b[1]) / (a[0] - b[0]) for a, b in pairwise(readings[:3])]
            curve = 0 * x0 if len(slopes) < 2 else (slopes[0] - slopes[1]) / (lam[i] - readings[2][0])
            slope = slopes[0] + curve * (lam[i] - readings[1][0])
            first = 1 - (1 - math.exp(-big)) / big  # of slope times h: the integral of (1 + k) e^{-(1 + k)(h - v)} v/h
            second = (1 - 2 * first / big) * (1 / 2 if released else 1)  # and of (v/h)^2
            step = step + first * h * slope + second * h**2 * curve
        noise = sigma[i + 1] * math.sqrt(1 - math.exp(-2 * k * h)) * z(i + 1)
        y = sigma[i + 1] / sigma[i] * math.exp(-k * h) * y + step + noise
    assert close(sample(model, DPMpp3MSDE(0.7, released), x, times, z, "stop").x, y)


def test_dpmpp_sde_at_eta_1_is_two_ancestral_steps_with_the_second_reading():
    """u is the ancestral step to m, and x_s the ancestral step to s with x0(u), by the same noise.  k-diffusion, r = 1/2."""
    model, x, times, _ = ve()
    sde = model.sde
    t, s = times[2:4]
    m = sde.time((sde.lam(t) + sde.lam(s)) / 2)
    r_m, r_s = ((sde.sigma(end) / sde.sigma(t)) ** 2 for end in (m, s))
    n_m = sde.sigma(m) * (1 - r_m).sqrt() * z(1)
    u = r_m * x + (1 - r_m) * model(x, t) + n_m
    n_s = (sde.sigma(s) / sde.sigma(m)) ** 2 * n_m + sde.sigma(s) * (1 - (sde.sigma(s) / sde.sigma(m)) ** 2).sqrt() * z(
        "1b"
    )
    expected = r_s * x + (1 - r_s) * model(u, m) + n_s
    assert close(sample(model, DPMppSDE(1), x, times[2:4], z, "stop").x, expected)


def test_sa_solvers_first_two_steps():
    """A corrector of one reading takes the new one alone, in the predictor's place, with the same noise."""
    model, x, times, sigma = ve()
    k = 0.49

    def step(y, i, d, slope=0.0):
        h = math.log(sigma[i] / sigma[i + 1])
        first = 1 - (1 - math.exp(-(1 + k) * h)) / ((1 + k) * h)
        noise = sigma[i + 1] * math.sqrt(1 - math.exp(-2 * k * h)) * z(i + 1)
        keep = sigma[i + 1] / sigma[i] * math.exp(-k * h)
        return keep * y + (1 - math.exp(-(1 + k) * h)) * d + first * h * slope + noise

    old = model(x, times[0])
    new = model(step(x, 0, old), times[1])
    corrected = step(x, 0, new)
    expected = step(corrected, 1, new, (new - old) / math.log(sigma[0] / sigma[1]))
    assert close(sample(model, SASolver(0.7, 3, 1), x, times[:3], z, "stop").x, expected)


def test_edm_churn():
    """Karras et al. 2022, alg. 2; a level above the largest is never asked."""
    model, x, times, sigma = ve()
    sampler = EDMChurn(3, 0.05, 50, 1.1)
    y = x

    def slope(y, level):
        return (y - model(y, model.sde.time(-torch.tensor(level).double().log()))) / level

    for i, (now, after) in enumerate(pairwise(sigma)):
        gamma = min(3 / 9, math.sqrt(2) - 1) if 0.05 <= now <= 50 else 0.0
        up = now * (1 + gamma)
        y_up = y + math.sqrt(up**2 - now**2) * 1.1 * z(i + 1)
        d = slope(y_up, up)
        y = y_up + (after - up) * (d + slope(y_up + (after - up) * d, after)) / 2
    assert close(sample(model, sampler, x, times, z, "stop").x, y)


@paths([("vp", "cosine"), ("ve", "edm"), ("flow", "logit")])
def test_churn_stays_within_the_levels(sde):
    """Also where it would leave them; at the largest itself no noise is asked for, below the window neither."""
    recorder, asked, x = Recorder(Exact(sde, mixture_2d())), [], sde.sample_prior(normal(0, 6, 2))
    noise = lambda c: asked.append(c) or z(c)  # noqa: E731
    times = UniformLam()(sde, 30)
    sample(recorder, EDMChurn(1e9, 0.1, 1e9), x, times, noise, "stop")
    levels = torch.exp(-sde.lam(torch.stack([t for _, t in recorder.calls])))
    highest = torch.exp(-sde.lam(times[0]))
    assert levels.max() == highest and (levels == highest).sum() >= 1
    window = torch.exp(-sde.lam(times[:-1])) >= 0.1
    assert asked == [i + 1 for i in range(1, 30) if window[i]]


REFUSED = [
    (c, dict(eta=-0.1)) for c in (EulerMaruyama, ReverseDiffusion, EulerAncestral, DPMppSDE, DPMpp2MSDE, DPMpp3MSDE)
]
REFUSED += [
    (SASolver, s) for s in (dict(eta=-1), dict(predictor_order=0), dict(predictor_order=4), dict(corrector_order=5))
]
REFUSED += [(EDMChurn, s) for s in (dict(s_churn=-1), dict(s_tmin=-1), dict(s_tmax=0.01), dict(s_noise=0))]
REFUSED += [(DDIM, dict(eta=1.1)), (DPMpp2MSDE, dict(variant="simpson")), (DPMpp2MSDE, dict(final=3))]
REFUSED += [(EulerMaruyama, dict(eta=math.inf)), (EulerMaruyama, dict(eta=math.nan))]


@pytest.mark.parametrize("option, settings", REFUSED)
def test_refusals(option, settings):
    with pytest.raises(ValueError, match="must"):
        option(**settings)
