"""Few steps fitted to a model: what is fitted is a linear method, never worse than where it began, and blind to how data lie."""

import pickle
import sys

import pytest
import torch
from cases import build, f64, mixture_2d, no_noise, normal

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Scales, UniformLam
from diffcli.diffusion.samplers import (
    DDIM,
    AdamsMoulton,
    Ancestral,
    Deis,
    DPMpp2M,
    DPMpp3M,
    Heun,
    UniPC,
    sample,
)
from diffcli.diffusion.samplers.tuned import TunedSampler
from diffcli.diffusion.tuning import TunedGrid, fit
from diffcli.diffusion.tuning.linear import weights_of
from diffcli.diffusion.tuning.reference import Reference, refined
from diffcli.diffusion.tuning.universal import Universal
from diffcli.diffusion.tuning.warp import warped

STEPS = 6


def model(mixture=None, pair=("vp", "linear")):
    return Exact(build(*pair), mixture or mixture_2d())


def starts(model, n=48, seed=0):
    return model.sde.prior_std * normal(seed, n, model.mixture.means.shape[1])


def fitted(model, sampler=None, steps=STEPS, seed=0, **more):
    more = dict(held=16, rounds=0, pieces=40) | more
    x = starts(model, 48, seed)
    return fit(lambda rows: model, sampler or AdamsMoulton(), Scales(), steps, x, **more)


def as_sampler(found):
    return TunedSampler({len(found.tuned.times) - 1: tuple(found.tuned)})


@pytest.mark.parametrize("sampler", [DDIM(), DPMpp2M(), DPMpp3M(), Deis(3), Deis(2, "x0"), UniPC(), AdamsMoulton()])
def test_a_linear_method_is_its_weights(sampler):
    exact, times = model(), Scales()(build("vp", "linear"), STEPS)
    x, weights = starts(exact, 4), weights_of(sampler, exact.sde, times)
    own = sample(exact, sampler, x, times, no_noise, "stop").x
    same = sample(exact, TunedSampler({STEPS: (times, weights)}), x, times, no_noise, "stop")
    assert torch.allclose(same.x, own, rtol=1e-9, atol=1e-11) and (same.nfe == STEPS).all()


@pytest.mark.heavy
@pytest.mark.parametrize("pair", [("vp", "linear"), ("ve", "edm"), ("flow", "logit")], ids="-".join)
def test_new_starts_end_at_a_fraction_of_the_error(pair):
    """0.1 to 0.2 by measurement, with none of the starts that were fitted on."""
    exact = model(pair=pair)
    found = fitted(exact, steps=8)
    x, times = starts(exact, 64, 9), Scales()(exact.sde, 8)
    end = sample(exact, AdamsMoulton(), x, refined(exact.sde, times, 160), no_noise, "stop").x

    def error(sampler, times):
        return (sample(exact, sampler, x, times, no_noise, "stop").x - end).norm(dim=1).median()

    assert error(as_sampler(found), found.tuned.times) < 0.4 * error(AdamsMoulton(), times)


@pytest.mark.parametrize("what", ["times", "all"])
def test_it_is_never_worse_than_where_it_began(what):
    for seed in range(2):
        found = fitted(model(), DPMpp2M(), 4, seed, what=what, rounds=1)
        assert found.after <= found.before and (found.tuned.times.diff() < 0).all()
        assert (found.tuned.weights is None) == (what == "times")


def test_what_is_worse_on_held_out_starts_is_not_taken(monkeypatch):
    monkeypatch.setattr(sys.modules[fit.__module__], "improve", lambda *_: f64(2.0, 2.0))
    found = fitted(model(), DPMpp2M(), 4, what="times")
    assert torch.equal(found.tuned.times, Scales()(build("vp", "linear"), 4)) and found.after == found.before


def test_starts_held_out_judge_and_no_more():
    exact, x = model(), starts(model())
    others = torch.cat([x[:32], starts(exact, 16, 7)])
    one, two = (
        fit(lambda rows: exact, AdamsMoulton(), Scales(), 4, s, held=16, rounds=0, pieces=40) for s in (x, others)
    )
    assert torch.equal(one.tuned.weights, two.tuned.weights) and one.before != two.before and one.after != two.after


def test_moved_times_help_any_sampler():
    found = fitted(model(), Heun(), 3, what="times", rounds=3)
    assert found.after < 0.9 * found.before and not torch.equal(found.tuned.times, Scales()(build("vp", "linear"), 3))


@pytest.mark.heavy
def test_gaussian_data_of_few_scales_is_exact():
    """Along the way each axis has a factor of its own, and so many steps have so many weights to match them."""
    gaussian = GaussianMixture(f64(1.0), torch.zeros(1, 2), torch.diag(f64(1.0, 0.04))[None])
    found = fitted(model(gaussian), DDIM(), 4, pieces=200)
    assert found.after < 1e-5 < 1e-2 < found.before


def test_turned_data_take_the_same_weights():
    turn = torch.linalg.qr(normal(3, 2, 2))[0]
    mixture = mixture_2d()
    turned = GaussianMixture(mixture.weights, mixture.means @ turn.T, turn @ mixture.covs @ turn.T)
    a, b = model(), model(turned)
    x = starts(a)
    one, two = (
        fit(lambda rows, m=m: m, AdamsMoulton(), Scales(), 5, start, held=16, rounds=0, pieces=40)
        for m, start in ((a, x), (b, x @ turn.T))
    )
    assert torch.allclose(one.tuned.weights, two.tuned.weights, atol=1e-5)
    assert one.after == pytest.approx(two.after, rel=1e-6)


def test_batches_change_nothing_and_conditions_follow_their_rows():
    exact, asked = model(), []

    def bound(rows):
        asked.append((rows.start, rows.stop))
        return exact

    x = starts(exact)
    one, two = (fit(bound, AdamsMoulton(), Scales(), 4, x, held=16, rounds=0, pieces=40, batch=b) for b in (64, 10))
    assert torch.allclose(one.tuned.weights, two.tuned.weights, atol=1e-8)
    assert {(0, 32), (32, 48), (30, 32), (42, 48)} <= set(asked)


def test_the_evaluations_are_counted():
    exact = model()
    exact.rows = 0
    found = fitted(exact, what="all", rounds=1)
    judged = 8 * STEPS + 3 * STEPS  # those held out take the fine walk, the beginning's, and two that were fitted
    assert exact.rows == 32 * found.nfe + 16 * judged


@pytest.mark.heavy
def test_the_reference_between_its_times_is_cubic():
    exact = model()
    x, times = starts(exact, 4), UniformLam()(exact.sde, 40)
    coarse, fine = (Reference(lambda rows: exact, x, refined(exact.sde, times, n), 64) for n in (80, 320))
    between = exact.sde.time(exact.sde.lam(times[20:22]).mean() + 0.013)
    assert torch.allclose(coarse.at(between), fine.at(between), atol=2e-4)
    assert torch.allclose(coarse.at(times[7]), coarse.states[14], atol=1e-12)


def test_a_warp_keeps_the_ends_and_zero_is_none():
    sde = build("vp", "linear")
    times = Scales()(sde, 9)
    assert torch.allclose(warped(sde, times, f64(0.0, 0.0)), times, rtol=1e-9)
    moved = warped(sde, times, f64(0.8, -0.5))
    assert torch.equal(moved[[0, -1]], times[[0, -1]]) and (moved.diff() < 0).all()


@pytest.mark.heavy
def test_universal_weights_beat_those_they_began_from():
    """On mixtures that are none of theirs, at a fifth to a half of the error by measurement."""
    exact, grid = model(), Scales(small=0.25, large=10.0)
    universal, begun = Universal(mixtures=12), AdamsMoulton(small=0.25, large=10.0)
    x = starts(exact, 64)
    end = sample(exact, AdamsMoulton(), x, UniformLam()(exact.sde, 160), no_noise, "stop").x

    def error(sampler, steps):
        return (sample(exact, sampler, x, grid(exact.sde, steps), no_noise, "stop").x - end).norm(dim=1).median()

    assert error(universal, 6) < 0.6 * error(begun, 6)
    many = Universal(most=3)
    assert error(many, 4) == pytest.approx(error(begun, 4).item(), rel=1e-9)


def test_universal_weights_are_the_same_each_time_and_in_other_processes():
    sde = build("ve", "edm")
    times = Scales(small=0.25, large=10.0)(sde, 3)
    one, two, wide = Universal(mixtures=4), Universal(mixtures=4), Universal(mixtures=4, sigma_data=2.0)
    assert wide.plan(sde, times).rows != one.plan(sde, times).rows
    assert one.plan(sde, times).rows == two.plan(sde, times).rows
    there = pickle.loads(pickle.dumps(one))
    assert there.plan(sde, times).rows == two.plan(sde, times).rows


def test_beyond_its_steps_universal_is_adams_moulton():
    exact = model(pair=("ve", "edm"))
    x, times = starts(exact, 2), Scales()(exact.sde, 40)
    many, plain = (
        sample(exact, s, x, times, no_noise, "stop").x for s in (Universal(0.07, 8.0, most=3), AdamsMoulton())
    )
    assert torch.allclose(many, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fitted(model(), Ancestral()), "only a sampler of the ODE"),
        (lambda: fitted(model(), Heun()), "one evaluation a step"),
        (lambda: fitted(model(), Deis(3, starter="rk")), "one evaluation a step"),
        (lambda: fitted(model(), held=48), "some starts must be fitted on"),
        (lambda: TunedGrid()(build("vp", "linear"), 5), "not been tuned"),
        (lambda: TunedGrid({4: torch.zeros(5)})(build("vp", "linear"), 5), "tuned for 4 steps, got 5"),
        (lambda: TunedSampler().setup(model()), "not been tuned"),
        (lambda: Universal(mixtures=0), "mixtures must lie between 1 and 1000"),
        (lambda: Universal(mixtures=1001), "mixtures must lie between 1 and 1000"),
        (lambda: Universal(most=100), "most must lie between 0 and 99"),
        (lambda: Universal(sigma_data=0.0), "sigma_data must be above 0"),
    ],
)
def test_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_other_times_than_its_own_are_refused():
    sde = build("vp", "linear")
    times = Scales()(sde, 4)
    tuned = TunedSampler({4: (times, torch.zeros(4, 5, dtype=torch.float64))})
    with pytest.raises(ValueError, match="the times that it was fitted with"):
        tuned.plan(sde, UniformLam()(sde, 4))
