import math

import pytest
import torch
from scipy import stats

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics import two_sample
from diffcli.metrics.energy_distance import energy_distance


def normal(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def brute(x, y, biased):
    def mean(a, b, skip):
        pairs = [math.dist(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return sum(pairs) / len(pairs)

    x, y = x.tolist(), y.tolist()
    return 2 * mean(x, y, False) - mean(x, x, not biased) - mean(y, y, not biased)


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_double_sum_in_any_blocks(d, biased, monkeypatch):
    x, y = normal(9, d, 0), 2 * normal(7, d, 1) + 0.3
    expected = brute(x, y, biased)
    assert energy_distance(x, y, biased).item() == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(two_sample, "BLOCK", 14)
    assert energy_distance(x, y, biased).item() == pytest.approx(expected, rel=1e-10)


def test_root_of_the_biased_one_is_that_of_scipy():
    x, y = normal(80, 1, 0), 1.5 * normal(50, 1, 1) + 0.2
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert energy_distance(x, y, biased=True).sqrt().item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("d", "scale"), [(1, 1.0), (1, 2.0), (5, 1.0), (5, 1.5)])
def test_it_is_unbiased_for_the_closed_form_of_gaussians(d, scale):
    """For N(0, I) and N(0, s^2 I): `E|N(0, v I)| = √v c_d`, c_d = √2 Γ((d+1)/2) / Γ(d/2)."""
    c = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    expected = c * (2 * math.sqrt(1 + scale**2) - math.sqrt(2) * (1 + scale))
    values = torch.stack([energy_distance(normal(60, d, 2 * i), scale * normal(40, d, 2 * i + 1)) for i in range(200)])
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(200)
    if scale == 1:
        assert (values < 0).any() and (values > 0).any()


@pytest.mark.parametrize("d", [2, 30])
def test_it_keeps_its_value_when_both_are_moved_and_scales_with_the_units(d):
    x, y = normal(30, d, 0), normal(20, d, 1) + 0.5
    turn = torch.linalg.qr(normal(d, d, 2)).Q
    value = energy_distance(x, y).item()
    assert energy_distance(x + 1e6, y + 1e6).item() == pytest.approx(value, abs=1e-8)
    assert energy_distance(x @ turn, y @ turn).item() == pytest.approx(value, rel=1e-9)
    assert energy_distance(-3 * x, -3 * y).item() == pytest.approx(3 * value, rel=1e-9)
    assert energy_distance(y, x).item() == pytest.approx(value, rel=1e-9)
    assert energy_distance(x.reshape(30, 2, -1), y.reshape(20, 2, -1)).item() == pytest.approx(value, rel=1e-9)


def test_equal_sets_are_zero_apart_by_all_pairs():
    x = normal(20, 3, 0)
    assert abs(energy_distance(x, x.flip(0), biased=True).item()) < 1e-14
    assert energy_distance(x, x).item() < 0


def test_unfit_sets_are_refused():
    x = normal(5, 2, 0)
    with pytest.raises(UsageError, match=r"shape \(2,\) cannot be compared with \(3,\)"):
        energy_distance(x, normal(5, 3, 0))
    with pytest.raises(UsageError, match="1 items are too few"):
        energy_distance(x[:1], x)
    bad = x.clone()
    bad[3, 1] = math.inf
    with pytest.raises(NumericalError, match="item 3 of the data is not finite"):
        energy_distance(x, bad)
