"""The singlestep samplers against their papers' algorithms, in what they read and in the order they reach."""

import math
from itertools import pairwise

import pytest
import torch
from cases import build, every_path, f64, mixture_2d, mixture_of, no_noise, noised, normal

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import Karras, UniformLam
from diffcli.diffusion.samplers import DDIM, DPM1, DPM2, DPM3, RK45, DPMpp2S, sample


def steps_of(sampler, model, x, times):
    """Each step alone, from the same x."""
    plan = sampler.plan(model.sde, times)
    return [sampler.step(model, x, i, plan, [], no_noise) for i in range(len(times) - 1)]


def close(a, b):
    return torch.allclose(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


def dpm2(model, x, t, s, r1):
    """Lu et al. 2022, alg. 4."""
    sde, lam = model.sde, model.sde.lam
    h = lam(s) - lam(t)
    s1 = sde.time(lam(t) + r1 * h)
    eps = model.eps(x, t)
    u1 = sde.alpha(s1) / sde.alpha(t) * x - sde.sigma(s1) * (torch.exp(r1 * h) - 1) * eps
    first = sde.alpha(s) / sde.alpha(t) * x - sde.sigma(s) * (torch.exp(h) - 1) * eps
    return first - sde.sigma(s) / (2 * r1) * (torch.exp(h) - 1) * (model.eps(u1, s1) - eps)


def dpm3(model, x, t, s, r1, r2):
    """Lu et al. 2022, alg. 5."""
    sde, lam = model.sde, model.sde.lam
    h = lam(s) - lam(t)
    s1, s2 = sde.time(lam(t) + r1 * h), sde.time(lam(t) + r2 * h)
    eps = model.eps(x, t)
    u1 = sde.alpha(s1) / sde.alpha(t) * x - sde.sigma(s1) * (torch.exp(r1 * h) - 1) * eps
    d1 = model.eps(u1, s1) - eps
    u2 = sde.alpha(s2) / sde.alpha(t) * x - sde.sigma(s2) * (torch.exp(r2 * h) - 1) * eps
    u2 = u2 - sde.sigma(s2) * r2 / r1 * ((torch.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
    d2 = model.eps(u2, s2) - eps
    first = sde.alpha(s) / sde.alpha(t) * x - sde.sigma(s) * (torch.exp(h) - 1) * eps
    return first - sde.sigma(s) / r2 * ((torch.exp(h) - 1) / h - 1) * d2


def dpmpp_2s(model, x, t, s, r):
    """Lu et al. 2022b, alg. 1."""
    sde, lam = model.sde, model.sde.lam
    h = lam(s) - lam(t)
    s1 = sde.time(lam(t) + r * h)
    x0 = model(x, t)
    u = sde.sigma(s1) / sde.sigma(t) * x - sde.alpha(s1) * (torch.exp(-r * h) - 1) * x0
    d = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * model(u, s1)
    return sde.sigma(s) / sde.sigma(t) * x - sde.alpha(s) * (torch.exp(-h) - 1) * d


@every_path
@pytest.mark.parametrize(
    ("sampler", "paper"),
    [
        (DPM2(), lambda *a: dpm2(*a, 1 / 2)),
        (DPM2(0.7), lambda *a: dpm2(*a, 0.7)),
        (DPM3(), lambda *a: dpm3(*a, 1 / 3, 2 / 3)),
        (DPM3(0.5, 0.8), lambda *a: dpm3(*a, 0.5, 0.8)),
        (DPMpp2S(), lambda *a: dpmpp_2s(*a, 1 / 2)),
        (DPMpp2S(0.3), lambda *a: dpmpp_2s(*a, 0.3)),
    ],
    ids=["dpm2", "dpm2-r1", "dpm3", "dpm3-r", "dpmpp_2s", "dpmpp_2s-r"],
)
def test_each_is_its_papers_algorithm(sde, sampler, paper):
    model, x, times = Exact(sde, mixture_2d()), normal(0, 4, 2), Karras()(sde, 4)
    for got, (t, s) in zip(steps_of(sampler, model, x, times), pairwise(times), strict=True):
        assert close(got, paper(model, x, t, s))


@every_path
def test_dpm1_is_ddim(sde):
    model, x, times = Exact(sde, mixture_2d()), normal(0, 4, 2), Karras()(sde, 6)
    for a, b in zip(steps_of(DPM1(), model, x, times), steps_of(DDIM(), model, x, times), strict=True):
        assert close(a, b)


def local_slope(sampler, d):
    """log2 of the error of one step over that of a step half as long."""
    sde = build("vp", "cosine")
    model = Exact(sde, mixture_2d() if d == 2 else mixture_of(d))
    x, errors = noised(sde, model.mixture, 16, 0.6), []
    for h in (0.05, 0.025):
        times = sde.time(sde.lam(f64(0.6)) + f64(0.0, h))
        exact = sample(model, RK45(1e-13), x, times, no_noise).x
        errors.append((sample(model, sampler, x, times, no_noise).x - exact).norm(dim=1))
    return torch.log2(errors[0] / errors[1]).median().item()


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DPM1(), 1), (DPM2(), 2), (DPM2(0.8), 2), (DPM3(), 3), (DPM3(r1=0.6), 3), (DPM3(r2=0.5), 2), (DPMpp2S(), 2)],
    ids=["dpm1", "dpm2", "dpm2-r1", "dpm3", "dpm3-r1", "dpm3-r2", "dpmpp_2s"],
)
def test_the_error_of_a_step_has_its_order(sampler, order, d):
    """One more than the sampler's; of the third order r2 = 2/3 alone."""
    assert sampler.order == order
    assert local_slope(sampler, d) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.heavy
@every_path
def test_dpm3_reaches_order_3(sde):
    model = Exact(sde, mixture_2d())
    x, coarse_fine = noised(sde, model.mixture, 16, sde.t_max), []
    end = sample(model, RK45(1e-11), x, UniformLam()(sde, 1), no_noise).x
    for steps in (160, 320):
        coarse_fine.append((sample(model, DPM3(), x, UniformLam()(sde, steps), no_noise).x - end).norm(dim=1).median())
    assert math.log2(coarse_fine[0] / coarse_fine[1]) >= 2.7


@pytest.mark.parametrize("r", [0.0, -0.5, 1.5])
def test_a_fraction_outside_of_the_step_is_refused(r):
    for build_it, name in ((DPM2, "r1"), (DPM3, "r1"), (lambda v: DPM3(r2=v), "r2"), (DPMpp2S, "r")):
        with pytest.raises(ValueError, match=rf"^{name} must lie in \(0, 1\], got {r}$"):
            build_it(r)
