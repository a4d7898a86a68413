"""The adaptive DPM-Solver pairs: the papers' steps, a tolerance that is met, and an item that is its own."""

import pytest
import torch
from cases import Twice, build, f64, mixture_2d, no_noise, noised, normal, paths

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.ode import Adaptive
from diffcli.diffusion.samplers import DPM1, DPM2, DPM3, RK45, DPMAdaptive, sample
from diffcli.diffusion.samplers.dpm_adaptive import DPMPair
from diffcli.errors import NumericalError

three = paths([("vp", "linear"), ("ve", "geometric"), ("flow", "logit")])
both = pytest.mark.parametrize("order", [2, 3])


def walk(sde, order, tol, n=8, **more):
    model = Exact(sde, mixture_2d())
    start = noised(sde, model.mixture, n, sde.t_max)
    return model, start, sample(model, DPMAdaptive(order, tol), start, UniformLam()(sde, 4), no_noise, **more)


@three
@both
def test_an_attempt_is_a_step_of_each_solver(sde, order):
    """The higher solution, and its difference to the lower one, each item with its own time and step."""
    model, x = Exact(sde, mixture_2d()), normal(0, 2, 2)
    tau, h = sde.lam(f64(0.8, 0.5)), f64(0.3, 0.7)
    pair = DPMPair(lambda y, lam: (model.eps(y[0], sde.time(lam)),), sde, order)
    (new,), (error,), _ = pair.attempt((x,), pair.read((x,), tau), tau, h, 0)
    low, high = (DPM1(), DPM2()) if order == 2 else (DPM2(1 / 3), DPM3())
    for n in range(2):
        times = sde.time(torch.stack([tau[n], tau[n] + h[n]]))
        a, b = (sample(model, s, x[n : n + 1], times, no_noise).x[0] for s in (low, high))
        assert torch.allclose(new[n], b, rtol=1e-9) and torch.allclose(error[n], b - a, rtol=1e-7, atol=1e-10)


@three
@both
def test_the_error_falls_with_the_tolerance(sde, order):
    errors, nfe = [], []
    _, start, _ = walk(sde, order, 0.1)
    end = sample(Exact(sde, mixture_2d()), RK45(1e-9), start, UniformLam()(sde, 1), no_noise).x
    for tol in (0.03, 0.003):
        _, _, got = walk(sde, order, tol)
        errors.append((got.x - end).norm(dim=1).median().item())
        nfe.append(got.nfe.double().mean().item())
    assert errors[1] < errors[0] / 3 and errors[0] < 3 * 0.03 and nfe[0] < nfe[1] < 120


@both
def test_each_item_takes_what_it_takes_alone(order):
    """Its steps, its bits and its evaluations; all the calls together are as many as the slowest items make."""
    sde = build("vp", "cosine")
    _, start, whole = walk(sde, order, 0.01)
    assert len(set(whole.nfe.tolist())) > 1
    for i in range(4):
        alone = Exact(sde, mixture_2d())
        got = sample(alone, DPMAdaptive(order, 0.01), start[i : i + 1], UniformLam()(sde, 4), no_noise)
        assert torch.allclose(got.x[0], whole.x[i], rtol=1e-12, atol=1e-12)
        assert got.nfe.item() == whole.nfe[i] == evaluations(alone)
    twice = sample(Twice(Exact(sde, mixture_2d())), DPMAdaptive(order, 0.01), start, UniformLam()(sde, 4), no_noise)
    assert torch.equal(twice.nfe, 2 * whole.nfe)


@three
@both
def test_a_callback_sees_the_path_at_the_grid_times(sde, order):
    """Between an item's steps as exact as they are, at no evaluation of its own."""
    seen = []
    model, start, quiet = walk(sde, order, 1e-3)
    _, _, got = walk(sde, order, 1e-3, callback=lambda i, x: seen.append((i, x.clone())))
    assert torch.equal(got.x, quiet.x) and torch.equal(got.nfe, quiet.nfe)
    assert [i for i, _ in seen] == [1, 2, 3, 4] and torch.allclose(seen[-1][1], got.x, rtol=1e-9, atol=1e-9)
    times = UniformLam()(sde, 4)
    for i, frame in seen[1:3]:
        exact = sample(model, RK45(1e-6), start, times[[0, i]], no_noise).x
        assert (frame - exact).abs().max() < 0.02 * exact.abs().max()


def test_what_fails_names_lam_and_the_evaluations():
    sde = build("vp", "linear")
    model, x = Exact(sde, mixture_2d()), normal(0, 3, 2)
    fn = lambda y, lam: (model.eps(y[0], sde.time(lam)),)  # noqa: E731
    with pytest.raises(NumericalError, match=r"tol = 1e-06 takes more than 30 evaluations, stopped at lam = -?\d"):
        Adaptive(1e-6, max_nfe=30).run(DPMPair(fn, sde, 3), (x,), -4.0, 3.0)
    with pytest.raises(NumericalError, match=r"non-finite value at lam = -4 after 1 evaluation "):
        Adaptive(1e-3).run(DPMPair(lambda y, lam: (torch.nan * y[0],), sde, 2), (x,), -4.0, 3.0)


def test_refusals():
    with pytest.raises(ValueError, match=r"order must be 2 \(the pair 12\) or 3 \(the pair 23\), got 4"):
        DPMAdaptive(4)
    with pytest.raises(ValueError, match="tol must lie between 0 and 1, got 0.0"):
        DPMAdaptive(tol=0.0)
