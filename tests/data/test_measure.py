"""What auto stands for: the largest distance and the spread of the training items, against plain loops over them."""

import itertools
import math

import pytest
import torch

import diffcli.data.measure as measure
from diffcli.data.measure import MEASURES, largest_distance, standard_deviation
from diffcli.errors import UsageError


def items(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def loop(x):
    """Every pair, one after the other."""
    rows = x.flatten(1).tolist()
    return max(math.dist(a, b) for a, b in itertools.combinations(rows, 2))


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)], ids=str)
@pytest.mark.parametrize("n", [2, 30, 151])
def test_largest_distance_is_that_of_a_loop_over_all_pairs(shape, n):
    x = items(n, *shape)
    assert largest_distance(x) == pytest.approx(loop(x), rel=1e-12)


def test_it_is_found_wherever_the_two_items_stand(monkeypatch):
    """In different chunks, in the same one, at the ends; and far from the origin, where squares cancel."""
    monkeypatch.setattr(measure, "CHUNK", 7)
    for i, j in ((0, 49), (3, 4), (6, 7), (20, 48)):
        x = 0.01 * items(50, 4).double() + 1e3
        x[i] -= 3.0
        x[j] += 4.0
        assert largest_distance(x) == pytest.approx(loop(x), rel=1e-9)
        assert largest_distance(x) > 13.5


def test_of_very_many_items_a_part_spread_over_all_is_compared(monkeypatch):
    monkeypatch.setattr(measure, "MOST", 100)
    x = torch.linspace(0, 1, 1001)[:, None]
    assert 0.98 < largest_distance(x) <= 1  # of every eleventh item
    assert largest_distance(x[:100]) == pytest.approx(0.099, rel=1e-5)  # of all


def test_standard_deviation_is_over_items_and_dimensions():
    x = items(200, 3, 2) * 2 + 1
    mean = sum(x.flatten().tolist()) / x.numel()
    expected = math.sqrt(sum((v - mean) ** 2 for v in x.flatten().tolist()) / x.numel())
    assert standard_deviation(x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_items_that_are_all_the_same_are_refused(name, value):
    """Also where their mean rounds to something else than they are."""
    with pytest.raises(UsageError, match=f"{name}=auto has nothing to measure"):
        MEASURES[name](torch.full((7, 3), value))
