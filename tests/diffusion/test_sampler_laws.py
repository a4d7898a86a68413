"""What one step must be, how evaluations are counted, and what a sampler does at its ends."""

import itertools

import pytest
import torch
from cases import Twice, build, every_path, f64, mixture_2d, mixture_of, no_noise, noised, normal

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import Karras, UniformLam, UniformT
from diffcli.diffusion.samplers import DDIM, DPM2, RK45, Ancestral, EulerMaruyama, Heun, sample
from diffcli.randomness import ItemNoise

FIXED = [DDIM(), DDIM(0.5), DDIM(1.0), DPM2(), Ancestral(), EulerMaruyama(), Heun("t"), Heun("lam"), Heun("sigma")]
IDS = ["ddim", "ddim-half", "ddim-1", "dpm2", "ancestral", "euler_maruyama", "heun-t", "heun-lam", "heun-sigma"]
every_fixed = pytest.mark.parametrize("sampler", FIXED, ids=IDS)
every_sampler = pytest.mark.parametrize("sampler", [*FIXED, RK45()], ids=[*IDS, "rk45"])
ETA = {"ddim-half": 0.5, "ddim-1": 1.0, "ancestral": 1.0, "euler_maruyama": 1.0}


def steps_of(sampler, model, x, times, z=None):
    """Each step alone, from the same x."""
    plan = sampler.plan(model.sde, times)
    return [sampler.step(model, x, i, plan, [], lambda c: z) for i in range(len(times) - 1)]


@every_path
@pytest.mark.parametrize("sampler, name", [pytest.param(s, n, id=n) for s, n in zip(FIXED, IDS, strict=True)])
def test_a_tiny_step_is_the_family_of_sdes(sde, sampler, name):
    """mean/h -> f x - (1 + eta^2)/2 g^2 score, and variance/h -> eta^2 g^2 (Kramers-Moyal)."""
    model, x = Exact(sde, mixture_2d()), normal(0, 12, 2)
    eta, h, z = ETA.get(name, 0.0), 1e-6, torch.ones(12, 2, dtype=torch.float64)
    for t in (0.2004, 0.6004):  # not at the levels of a table, where f and g jump
        times = f64(t, t - h, t - 2 * h)  # two steps: what is special about the last one is not looked at
        quiet = steps_of(sampler, model, x, times, 0 * z)[0]
        drift = sde.f(times[0]) * x - 0.5 * (1 + eta**2) * sde.g2(times[0]) * model.score(x, times[0])
        assert torch.allclose((quiet - x) / -h, drift, rtol=1e-3, atol=1e-3 * drift.abs().max().item())
        loud = steps_of(sampler, model, x, times, z)[0]
        assert torch.allclose((loud - quiet) ** 2 / h, eta**2 * sde.g2(times[0]) * z, rtol=1e-3, atol=1e-9)


@every_path
def test_ddim_is_dpm_solver_1(sde):
    """x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) eps.  Lu et al. 2022, eq. 3.7."""
    model, x, times = Exact(sde, mixture_2d()), normal(0, 6, 2), Karras()(sde, 9)
    got = steps_of(DDIM(), model, x, times)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        h = sde.lam(s) - sde.lam(t)
        expected = sde.alpha(s) / sde.alpha(t) * x - sde.sigma(s) * torch.expm1(h) * model.eps(x, t)
        assert torch.allclose(got[i], expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@every_path
def test_dpm2_is_its_formula(sde):
    """With its midpoint at lam + h/2.  Lu et al. 2022, alg. 1."""
    model, x, times = Exact(sde, mixture_2d()), normal(0, 6, 2), UniformT()(sde, 9)
    got = steps_of(DPM2(), model, x, times)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        h = sde.lam(s) - sde.lam(t)
        m = sde.time(sde.lam(t) + h / 2)
        u = sde.alpha(m) / sde.alpha(t) * x - sde.sigma(m) * torch.expm1(h / 2) * model.eps(x, t)
        expected = sde.alpha(s) / sde.alpha(t) * x - sde.sigma(s) * torch.expm1(h) * model.eps(u, m)
        assert torch.allclose(got[i], expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@every_path
def test_ddim_with_eta_1_is_ancestral(sde):
    model, x, z, times = Exact(sde, mixture_2d()), normal(0, 6, 2), normal(1, 6, 2), UniformLam()(sde, 8)
    ddim, ancestral = steps_of(DDIM(1.0), model, x, times, z), steps_of(Ancestral(), model, x, times, z)
    for a, b in zip(ddim, ancestral, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


def test_ancestral_is_ddpm():
    """mu = (x - beta_i / sqrt(1 - alphabar_i) eps) / sqrt(1 - beta_i), variance betatilde_i.  Ho et al. 2020."""
    sde = build("vp", "linear")
    model, x, z, times = Exact(sde, mixture_2d()), normal(0, 6, 2), normal(1, 6, 2), UniformT()(sde, 50)
    bar = sde.alpha(times) ** 2
    got = steps_of(Ancestral(), model, x, times, z)
    for i in range(50):
        beta = 1 - bar[i] / bar[i + 1]
        mean = (x - beta / (1 - bar[i]).sqrt() * model.eps(x, times[i])) / (1 - beta).sqrt()
        std = ((1 - bar[i + 1]) / (1 - bar[i]) * beta).sqrt()
        assert torch.allclose(got[i], mean + std * z, rtol=1e-9, atol=1e-9)


@every_path
def test_euler_maruyama_is_its_formula(sde):
    """x_s = x + (f x - g^2 score)(s - t) + g sqrt(t - s) z."""
    model, x, z, times = Exact(sde, mixture_2d()), normal(0, 6, 2), normal(1, 6, 2), UniformT()(sde, 7)
    got = steps_of(EulerMaruyama(), model, x, times, z)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        drift = sde.f(t) * x - sde.g2(t) * model.score(x, t)
        expected = x + drift * (s - t) + (sde.g2(t) * (t - s)).sqrt() * z
        assert torch.allclose(got[i], expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@every_fixed
def test_evaluations_of_a_fixed_grid(sampler):
    """Declared evaluations a step; `denoise` costs one more and returns x0_hat at the last time."""
    sde = build("vp", "linear")
    x, times = normal(0, 5, 2), UniformLam()(sde, 7)

    def noise(counter):
        return 0 * x

    model = Exact(sde, mixture_2d())
    stopped, nfe = sample(model, sampler, x, times, noise, last="stop")
    assert nfe.tolist() == [7 * sampler.evaluations] * 5
    assert evaluations(model) == 5 * 7 * sampler.evaluations
    denoised, nfe = sample(model, sampler, x, times, noise, last="denoise")
    assert nfe.tolist() == [7 * sampler.evaluations + 1] * 5
    assert torch.equal(denoised, model(stopped, times[-1]))
    doubled = sample(Twice(Exact(sde, mixture_2d())), sampler, x, times, noise, last="denoise")
    assert doubled.nfe.tolist() == [2 * (7 * sampler.evaluations + 1)] * 5
    assert torch.allclose(doubled.x, denoised, rtol=1e-9, atol=1e-9)


def test_second_order_samplers_take_two_evaluations_a_step():
    assert [s.evaluations for s in (Heun(), DPM2(), DDIM(), Ancestral(), EulerMaruyama())] == [2, 2, 1, 1, 1]


def test_evaluations_of_rk45():
    sde = build("vp", "linear")
    model, x, times = Exact(sde, mixture_2d()), 3 * normal(0, 5, 2), UniformLam()(sde, 1)
    once = sample(model, RK45(1e-4), x, times, no_noise)
    assert evaluations(model) == 5 * once.nfe.max()  # finished items wait, uncounted, for the slowest
    assert len(set(once.nfe.tolist())) > 1 and ((once.nfe - 1) % 6 == 0).all()
    twice = sample(Twice(Exact(sde, mixture_2d())), RK45(1e-4), x, times, no_noise)
    assert torch.equal(twice.nfe, 2 * once.nfe)
    denoised = sample(model, RK45(1e-4), x, times, no_noise, last="denoise")
    assert torch.equal(denoised.nfe, once.nfe + 1)


def test_what_the_last_step_does_unless_told():
    sde = build("vp", "linear")
    x, times = normal(0, 3, 2), UniformLam()(sde, 5)
    for sampler in [*FIXED, RK45()]:
        model = Exact(sde, mixture_2d())
        last = "stop" if sampler.kind == "ode" else "denoise"
        noise = no_noise if sampler.kind == "ode" else lambda c: 0 * x
        assert torch.equal(
            sample(model, sampler, x, times, noise).x, sample(model, sampler, x, times, noise, last=last).x
        )
    assert [s.kind for s in (DDIM(), DDIM(0.1), Ancestral(), EulerMaruyama())] == ["ode", "sde", "sde", "sde"]


@every_fixed
def test_each_step_draws_its_own_noise(sampler):
    """Counters are i + 1: 0 is the start, and no two steps share one."""
    sde, asked = build("vp", "linear"), []

    def noise(counter):
        asked.append(counter)
        return torch.zeros(3, 2, dtype=torch.float64)

    sample(Exact(sde, mixture_2d()), sampler, normal(0, 3, 2), UniformLam()(sde, 6), noise)
    assert asked == ([] if sampler.kind == "ode" else list(range(1, 7)))


@every_sampler
def test_an_items_sample_does_not_depend_on_its_batch(sampler):
    sde = build("vp", "cosine")
    model, times = Exact(sde, mixture_2d()), UniformLam()(sde, 12)

    def draw(items):
        noise = ItemNoise(0, items, (2,), torch.float64)
        start = noise(0) * torch.tensor([[1.0 + 3 * i] for i in items], dtype=torch.float64)
        return sample(model, sampler, start, times, noise)

    whole = draw(range(8))
    for items in ([5], [7, 0, 5]):
        part = draw(items)
        assert torch.allclose(part.x, whole.x[items], rtol=1e-12, atol=1e-12)
        assert torch.equal(part.nfe, whole.nfe[items])


@every_sampler
def test_any_event_shape_is_the_flat_one(sampler):
    sde = build("ve", "geometric")
    model, times, z = Exact(sde, mixture_of(6)), UniformLam()(sde, 6), normal(1, 4, 6)
    x = sde.sample_prior(normal(0, 4, 6))
    flat = sample(model, sampler, x, times, lambda c: z).x
    image = sample(model, sampler, x.view(4, 1, 2, 3), times, lambda c: z.view(4, 1, 2, 3)).x
    assert image.shape == (4, 1, 2, 3)
    assert torch.allclose(image.flatten(1), flat, rtol=1e-10, atol=1e-10)


@every_sampler
def test_float32_states_follow_float64_ones(sampler):
    sde = build("vp", "linear")
    model, times, x, z = Exact(sde, mixture_2d()), UniformLam()(sde, 20), normal(0, 20, 2), normal(1, 20, 2)
    single = sample(model, sampler, x.float(), times, lambda c: z.float()).x
    assert single.dtype == torch.float32
    assert (single - sample(model, sampler, x, times, lambda c: z).x).abs().max() < 2e-3


@every_fixed
def test_callback_sees_every_time(sampler):
    sde, seen = build("vp", "linear"), []
    x, times = normal(0, 3, 2), UniformLam()(sde, 5)
    model = Exact(sde, mixture_2d())
    end = sample(model, sampler, x, times, lambda c: 0 * x, "stop", lambda i, x: seen.append((i, x.clone()))).x
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5] and torch.equal(seen[-1][1], end)
    shorter = sample(model, sampler, x, times[:3], lambda c: 0 * x, "stop").x
    assert torch.allclose(seen[1][1], shorter, rtol=1e-12)


def test_rk45_shows_its_path_at_the_grid_times():
    """Interpolated between each item's own steps, within a small multiple of what the steps resolve."""
    sde, seen = build("vp", "linear"), []
    model = Exact(sde, mixture_2d())
    x, times = noised(sde, model.mixture, 6, 1.0), UniformLam()(sde, 9)
    end, nfe = sample(model, RK45(1e-6), x, times, no_noise, callback=lambda i, x: seen.append((i, x.clone())))
    assert [i for i, _ in seen] == list(range(1, 10)) and torch.allclose(seen[-1][1], end, rtol=1e-12)
    assert torch.equal(nfe, sample(model, RK45(1e-6), x, times, no_noise).nfe)
    for i, frame in seen[2:9:3]:
        there = sample(model, RK45(1e-6), x, times[[0, i]], no_noise).x
        assert (frame - there).abs().max() < 1e-3


def test_a_step_does_not_change_its_argument():
    sde = build("vp", "linear")
    x = noised(sde, mixture_2d(), 4, 1.0)
    kept = x.clone()
    for sampler in [*FIXED, RK45()]:
        sample(Exact(sde, mixture_2d()), sampler, x, UniformLam()(sde, 4), lambda c: normal(c, 4, 2))
        assert torch.equal(x, kept)
