"""What one step must be, how evaluations are counted, and what a sampler does at its ends."""

import copy
import itertools
import pickle
import weakref

import pytest
import torch
from cases import PATHS, Twice, build, every_path, f64, mixture_2d, mixture_of, no_noise, noised, normal, paths
from sampler_cases import FIXED, ODE, SAMPLERS, over
from torch.utils._python_dispatch import TorchDispatchMode

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import Karras, UniformLam, UniformT
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import (
    DDIM,
    DPM2,
    RK45,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    PredictorCorrector,
    Resample,
    Sampler,
    base,
    most_steps,
    sample,
)
from diffcli.randomness import ItemNoise


def steps_of(sampler, model, x, times, z=None):
    """Each step alone, from the same x."""
    plan = sampler.plan(model.sde, times)
    return [sampler.step(model, x, i, plan, [], lambda c: z) for i in range(len(times) - 1)]


class Still:
    """A noise that is 0, of every kind."""

    def __init__(self, x):
        self.x = x

    def __call__(self, counter):
        return torch.zeros_like(self.x)

    def uniform(self, counter):
        return torch.full_like(self.x, 0.5)


@over(ODE)
@paths(PATHS[::2])
def test_a_few_tiny_steps_follow_the_ode(sde, sampler):
    """(x_s - x_t)/(s - t) -> f x - g^2 score / 2, also when the history is full (Kramers-Moyal's first moment)."""
    model, x, h = Exact(sde, mixture_2d()), normal(0, 12, 2), 1e-6
    for t in (0.2004, 0.6004):  # not at the levels of a table, where f and g jump
        times = f64(*[t - i * h for i in range(7)])
        moved = sample(model, sampler, x, times, no_noise).x - x
        drift = sde.f(times[0]) * x - 0.5 * sde.g2(times[0]) * model.score(x, times[0])
        assert torch.allclose(moved / (times[-1] - times[0]), drift, rtol=1e-3, atol=1e-3 * drift.abs().max().item())


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


@over(FIXED)
def test_evaluations_are_those_announced(sampler):
    """`cost` is what the network is asked, wrapped or not; `denoise` costs one more and returns x0_hat at the last time."""
    sde = build("vp", "linear")
    x = normal(0, 5, 2)
    for steps in (1, 2, 7):
        times, cost = UniformLam()(sde, steps), sampler.cost(steps)
        model = Exact(sde, mixture_2d())
        stopped, nfe = sample(model, sampler, x, times, Still(x), last="stop")
        assert nfe.tolist() == [cost] * 5
        assert evaluations(model) == 5 * cost
        denoised, nfe = sample(model, sampler, x, times, Still(x), last="denoise")
        assert nfe.tolist() == [cost + 1] * 5
        assert torch.equal(denoised, model(stopped, times[-1]))
    doubled = sample(Twice(Exact(sde, mixture_2d())), sampler, x, times, Still(x), last="denoise")
    assert doubled.nfe.tolist() == [2 * (cost + 1)] * 5
    assert torch.allclose(doubled.x, denoised, rtol=1e-9, atol=1e-9)


@over(FIXED)
def test_the_most_steps_that_fit(sampler):
    assert sampler.cost(1) >= 1 and all(sampler.cost(n + 1) > sampler.cost(n) for n in range(1, 9))
    for nfe in range(1, 40):
        steps = most_steps(sampler, nfe)
        assert (steps == 0 or sampler.cost(steps) <= nfe) and sampler.cost(steps + 1) > nfe


def test_evaluations_of_a_step():
    """After the starter; of the samplers whose papers say so."""
    expected = dict(
        euler=1, heun=2, rk4=4, ddim=1, dpm1=1, dpm2=2, dpm3=3, dpmpp_2s=2, dpmpp_2m=1, dpmpp_3m=1, unipc=1, deis=1
    )
    expected |= dict(lms=1, pndm=1, ancestral=1, euler_maruyama=1, reverse_diffusion=1, dpmpp_sde=2)
    for name, count in expected.items():
        sampler = SAMPLERS[name]
        assert sampler.cost(31) - sampler.cost(30) == count == sampler.evaluations


@pytest.mark.parametrize(
    ("name", "extra"), [("deis-rk", 2), ("deis-4", 6), ("lms-rk", 6), ("dpmpp_3m-rk", 2), ("unipc-rk", 4), ("pndm", 9)]
)
def test_evaluations_of_a_starter(name, extra):
    """points - 1 steps by Heun (order 3) or Kutta's third order (order 4); F-PNDM's three by four evaluations each."""
    assert SAMPLERS[name].cost(10) == 10 + extra


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


@over(SAMPLERS)
def test_what_the_last_step_does_unless_told(sampler):
    sde = build("vp", "linear")
    x, times, model = normal(0, 3, 2), UniformLam()(sde, 5), Exact(sde, mixture_2d())
    last = "denoise" if sampler.kind == "sde" or isinstance(sampler, AnnealedLangevin) else "stop"
    told = sample(model, sampler, x, times, Still(x), last=last)
    assert torch.equal(sample(model, sampler, x, times, Still(x)).x, told.x)


def test_the_kinds():
    kinds = {name: s.kind for name, s in SAMPLERS.items()}
    assert [n for n in ("ddim", "heun", "deis", "unipc", "rk45", "dpm_adaptive") if kinds[n] != "ode"] == []
    assert [n for n in ("ddim-1", "ancestral", "euler_maruyama", "dpmpp_2m_sde", "pc") if kinds[n] != "sde"] == []
    assert [n for n in ("langevin", "annealed_langevin", "mode") if kinds[n] != "score"] == []


class Counting(Still):
    """Keeps what was asked for."""

    def __init__(self, x):
        super().__init__(x)
        self.asked = []

    def __call__(self, counter):
        self.asked.append(counter)
        return super().__call__(counter)


@over(FIXED)
def test_each_step_draws_its_own_noise(sampler):
    """0 is the start's counter, and no two draws share one; an ODE sampler draws none."""
    sde, x = build("vp", "linear"), normal(0, 3, 2)
    noise = Counting(x)
    sample(Exact(sde, mixture_2d()), sampler, x, UniformLam()(sde, 6), noise, last="stop")
    assert len(set(noise.asked)) == len(noise.asked) and 0 not in noise.asked
    assert bool(noise.asked) == (sampler.kind == "sde") or sampler.kind == "score"


@over(SAMPLERS)
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


class Same(Still):
    """The same noise at every counter, in the state's shape and type."""

    def __init__(self, x, z):
        super().__init__(x)
        self.z = z.to(x.dtype).view(x.shape)

    def __call__(self, counter):
        return self.z


@over(SAMPLERS)
def test_any_event_shape_is_the_flat_one(sampler):
    sde = build("ve", "geometric")
    model, times, z = Exact(sde, mixture_of(6)), UniformLam()(sde, 6), normal(1, 4, 6)
    x = sde.sample_prior(normal(0, 4, 6))
    flat = sample(model, sampler, x, times, Same(x, z)).x
    x = x.view(4, 1, 2, 3)
    image = sample(model, sampler, x, times, Same(x, z)).x
    assert image.shape == (4, 1, 2, 3)
    assert torch.allclose(image.flatten(1), flat, rtol=1e-10, atol=1e-10)


@over(
    {n: s for n, s in SAMPLERS.items() if s.evaluations is not None or s.kind == "ode"}
)  # steps chosen under noise differ
def test_float32_states_follow_float64_ones(sampler):
    sde = build("vp", "linear")
    model, times, x, z = Exact(sde, mixture_2d()), UniformLam()(sde, 20), normal(0, 20, 2), normal(1, 20, 2)
    single = sample(model, sampler, x.float(), times, Same(x.float(), z)).x
    assert single.dtype == torch.float32
    assert (single - sample(model, sampler, x, times, Same(x, z)).x).abs().max() < 2e-3


@over(SAMPLERS)
def test_callback_sees_every_time(sampler):
    """And changes nothing."""
    sde, seen = build("vp", "linear"), []
    x, times = normal(0, 3, 2), UniformLam()(sde, 5)
    model = Exact(sde, mixture_2d())
    end = sample(model, sampler, x, times, Still(x), "stop", lambda i, x: seen.append((i, x.clone()))).x
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5] and torch.allclose(seen[-1][1], end, rtol=1e-12)
    assert torch.equal(end, sample(model, sampler, x, times, Still(x), "stop").x)


@over(FIXED)
def test_progress_wraps_the_steps(sampler):
    sde, seen = build("vp", "linear"), []
    x = normal(0, 3, 2)

    def progress(steps):
        assert len(steps) == 5
        for i in steps:
            yield i
            seen.append(i)

    sample(Exact(sde, mixture_2d()), sampler, x, UniformLam()(sde, 5), Still(x), progress=progress)
    assert seen == [0, 1, 2, 3, 4]


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


@over(SAMPLERS)
def test_a_step_does_not_change_its_argument(sampler):
    sde = build("vp", "linear")
    x = noised(sde, mixture_2d(), 4, 1.0)
    kept = x.clone()
    sample(Exact(sde, mixture_2d()), sampler, x, UniformLam()(sde, 4), Same(x, normal(3, 4, 2)))
    assert torch.equal(x, kept)


@over({n: FIXED[n] for n in ("ddim", "dpmpp_3m-rk", "edm_churn", "langevin", "pc")})
def test_a_sampler_walks_each_grid_and_sde_as_a_new_one_would(sampler):
    """What it keeps of one walk is of no other."""
    sde, other, x = build("vp", "linear"), build("vp", "cosine"), normal(0, 3, 2)
    times, new = UniformLam()(sde, 3), copy.copy(sampler)
    new._last = None

    def walk(s, sde=sde):
        return sample(Exact(sde, mixture_2d()), s, x, times, Same(x, normal(3, 3, 2)), "stop").x

    before = walk(sampler)
    assert torch.equal(walk(sampler, other), walk(copy.copy(new), other))
    walk(sampler)
    times *= 0.9  # in place
    assert torch.equal(walk(sampler), walk(copy.copy(new))) and not torch.equal(walk(sampler), before)
    assert torch.equal(walk(pickle.loads(pickle.dumps(sampler))), walk(sampler))


@over(SAMPLERS)
def test_a_sampler_declares_what_it_is(sampler):
    assert isinstance(sampler, Sampler) and sampler.kind in ("ode", "sde", "score") and sampler.clock in ("lam", "t")
    # a corrector's step does not shrink, and a pass over a few steps may end before its predictor has its order
    no_order = sampler.kind == "score" or isinstance(sampler, PredictorCorrector | Resample)
    assert (sampler.order is None) == no_order


class Zero(torch.nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


class NoTransfer(TorchDispatchMode):
    """Refuses a copy of a tensor from one device to another."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [a for a in args if isinstance(a, torch.Tensor)]
        if "copy" in func.__name__ and isinstance(out, torch.Tensor):
            assert all(a.device == out.device for a in given), f"{func} moves a tensor"
        return out


@over(FIXED)
def test_no_step_waits_for_the_device(sampler, monkeypatch):
    """States on the meta device have no values: whatever reads one, `item()`, `if x > 0`, a copy to the host, raises.

    But for the looks at whether x is finite: one in `LOOK` steps, one at the end, and one at what last=denoise gives.
    """
    looks = []
    monkeypatch.setattr(base, "fine", lambda x: looks.append(x) or True)
    model = Eps(build("vp", "linear"), Zero())
    x = torch.empty(3, 2, device="meta")
    for steps in (6, 3 * base.LOOK):
        looks.clear()
        with NoTransfer():
            end = sample(model, sampler, x, UniformLam()(model.sde, steps), Still(x), "denoise").x
        assert end.device.type == "meta" and end.shape == x.shape
        assert len(looks) == max(1, steps // base.LOOK) + 1


class Live(TorchDispatchMode):
    """The most tensors of the state's size that were alive at once while steps were made."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.alive, self.most = numel, weakref.WeakSet(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.numel:
            self.alive.add(out.untyped_storage())
            self.most = max(self.most, len(self.alive))
        return out


@over(FIXED)
def test_memory_does_not_grow_with_the_steps(sampler):
    """Beyond the history nothing stays: 24 steps hold as many states at once as 12."""
    model, most = Eps(build("vp", "linear"), Zero()), []
    for steps in (12, 24):
        x = torch.randn(4, 64)
        with Live(x.numel()) as live, torch.no_grad():
            sample(model, sampler, x, UniformLam()(model.sde, steps), Still(x))
        most.append(live.most)
    assert most[0] == most[1] < 36  # of which the tangents of dpm_taylor are 28
