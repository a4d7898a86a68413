"""Randomness as a function of what it is for."""

import itertools

import numpy as np
import pytest
import torch
from cases import every_path
from scipy.stats import kstest

from diffcli.diffusion.time_sampling import Uniform
from diffcli.randomness import Draw, ItemNoise, key


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_draw_is_a_function_of_seed_step_rank_and_purpose(kind):
    """All 16 combinations of two values each: the same twice over, and all different from one another."""

    def draw(seed, step, rank, purpose):
        return getattr(Draw(seed, step, rank), kind)(purpose, (50,))

    combinations = list(itertools.product([0, 1], [0, 1], [0, 1], ["t", "eps"]))
    first, second = [draw(*c) for c in combinations], [draw(*c) for c in combinations]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in itertools.combinations(first, 2):
        assert not (a == b).any()


def test_a_draw_does_not_depend_on_what_was_drawn_before():
    draw = Draw(3, 5)
    before = draw.normal("eps", (4,))
    draw.uniform("t", (7,))
    torch.randn(3)
    assert torch.equal(draw.normal("eps", (4,)), before)


def test_a_draw_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    Draw(0, 0).normal("eps", (4,))
    ItemNoise(0, [0], (4,))(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_have_their_laws():
    assert kstest(Draw(0, 0).normal("eps", (20_000,), torch.float64).numpy(), "norm").pvalue > 1e-3
    u = Draw(0, 0).uniform("t", (20_000,), torch.float64)
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3 and u.min() >= 0 and u.max() < 1
    assert Draw(0, 0).normal("eps", (2,)).dtype == torch.float32


def test_keys_do_not_collide():
    """Not by joining (1, 12) and (11, 2), nor a number with its name."""
    parts = [(1, 12), (11, 2), (112,), ("1", "12"), (1, "12"), (1, 12, ""), ()]
    assert len({key(*p) for p in parts}) == len(parts)
    assert all(0 <= key(*p) < 2**128 for p in parts)


@pytest.mark.parametrize("kind", ["normal", "uniform", "signs"])
def test_an_items_noise_does_not_depend_on_its_batch(kind):
    def draw(items):
        noise = ItemNoise(3, items, (2, 3), torch.float64)
        return noise("c") if kind == "normal" else noise.uniform("c") if kind == "uniform" else noise.signs("c", 4)

    whole = draw(range(10))
    assert torch.equal(draw([7])[0], whole[7])
    assert torch.equal(draw([9, 2, 7]), whole[[9, 2, 7]])


@pytest.mark.parametrize("shape", [(), (3,), (1, 8, 8)])
def test_an_items_noise_is_that_of_a_generator_of_its_own(shape):
    """What is drawn before it, for another item or another counter, leaves nothing behind in the generator."""
    noise = ItemNoise(3, [4, 2**70, 5], shape, torch.float64)
    for counter in (1, "probes"):
        for kind, found in (("standard_normal", noise(counter)), ("random", noise.uniform(counter))):
            own = [np.random.Generator(np.random.Philox(key=key(3, i, counter, kind))) for i in noise.items]
            assert np.array_equal(found, np.stack([getattr(rng, kind)(shape) for rng in own]))


def test_item_noise_takes_any_kind_of_integer_for_an_item():
    """A loader may hand over NumPy or torch integers; item 2 is item 2."""
    plain = ItemNoise(0, [0, 1, 2], (4,))(1)
    assert torch.equal(ItemNoise(0, np.arange(3), (4,))(1), plain)
    assert torch.equal(ItemNoise(0, torch.arange(3), (4,))(1), plain)


def test_item_noise_is_standard_normal_and_uncorrelated():
    n, d = 300, 200
    rows = {
        (seed, counter): ItemNoise(seed, range(n), (d,), torch.float64)(counter)
        for seed, counter in [(0, 0), (0, 1), (0, "probes"), (1, 0)]
    }
    for x in rows.values():
        assert kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
        between = np.corrcoef(x.numpy())[np.triu_indices(n, 1)]  # between items
        assert abs(between).max() < 6 / d**0.5
        assert between.std() == pytest.approx(d**-0.5, rel=0.05)
    for a, b in itertools.combinations(rows.values(), 2):  # between counters and seeds
        assert abs((a * b).mean()) < 4 / (n * d) ** 0.5


def test_item_noise_is_one_noise_in_every_dtype():
    double, single = (ItemNoise(0, range(5), (3,), dtype)(1) for dtype in (torch.float64, torch.float32))
    assert single.dtype == torch.float32
    assert torch.equal(double.float(), single)


def test_signs_are_rademacher_and_differ_by_probe():
    signs = ItemNoise(0, range(50), (40,), torch.float64).signs("probes", 8)
    assert signs.shape == (50, 8, 40)
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert abs(signs.mean()) < 4 / signs.numel() ** 0.5
    assert not torch.equal(signs[:, 0], signs[:, 1])


def test_uniform_item_noise():
    u = ItemNoise(0, range(50), (400,), torch.float64).uniform("u")
    assert kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


@every_path
def test_times_are_uniform_over_draws(sde):
    """Each position of the batch is uniform on [t_min, t_max], not only the batch as a whole."""
    t = torch.stack([Uniform()(sde, 5, Draw(0, step))[0] for step in range(1500)])
    span = sde.t_max - sde.t_min
    assert t.dtype == torch.float64 and t.min() >= sde.t_min and t.max() <= sde.t_max
    for position in range(5):
        assert kstest(((t[:, position] - sde.t_min) / span).numpy(), "uniform").pvalue > 1e-3


@every_path
def test_times_are_stratified_and_unweighted(sde):
    """n times are n equal gaps around the circle, whatever n is."""
    for n in (1, 7, 64):
        t, importance = Uniform()(sde, n, Draw(1, n))
        u = ((t - sde.t_min) / (sde.t_max - sde.t_min)).sort().values
        gaps = torch.cat([u.diff(), u[:1] + 1 - u[-1:]])
        assert torch.allclose(gaps, torch.full_like(gaps, 1 / n), atol=1e-12)
        assert torch.equal(importance, torch.ones(n, dtype=torch.float64))
