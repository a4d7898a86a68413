import math

import pytest
import torch

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics import two_sample
from diffcli.metrics.ruler import Ruler
from diffcli.metrics.two_sample import median_distance, mmd, sliced_wasserstein

SCALES = (0.25, 0.5, 1, 2, 4)


def normal(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def brute_mmd(x, y, bandwidth):
    def k(a, b):
        square = ((a - b) ** 2).sum().item()
        return sum(math.exp(-square / (2 * (c * bandwidth) ** 2)) for c in SCALES)

    def within(a):
        n = len(a)
        return sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_shift_is_its_length_over_root_d(d):
    mu = torch.linspace(1, 2, d, dtype=torch.float64)
    x = normal(2000, d, 0)
    value = sliced_wasserstein(x, normal(2000, d, 1) + mu, projections=500)
    assert value.item() == pytest.approx(mu.norm().item() / d**0.5, rel=0.05)
    # The same points shifted: exact in each direction, only the directions are random.
    exact = sliced_wasserstein(x, x + mu, projections=1000)
    assert exact.item() == pytest.approx(mu.norm().item() / d**0.5, rel=0.05 if d > 1 else 1e-12)


def test_one_dimension_is_the_sorted_distance():
    x, y = normal(50, 1, 0), 3 * normal(50, 1, 1) + 1
    expected = ((x.sort(0).values - y.sort(0).values) ** 2).mean().sqrt()
    torch.testing.assert_close(sliced_wasserstein(x, y, projections=3), expected)


def test_gaussians_of_two_widths_are_the_difference_of_widths_apart():
    x, y = normal(20000, 1, 0), 3 * normal(20000, 1, 1)
    assert sliced_wasserstein(x, y).item() == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("n, m", [(6, 4), (7, 3), (5, 5), (1, 4)])
def test_unequal_counts_are_those_of_repeated_points(n, m):
    x, y = normal(n, 2, 0), normal(m, 2, 1)
    repeated = sliced_wasserstein(x.repeat_interleave(m, 0), y.repeat_interleave(n, 0))
    torch.testing.assert_close(sliced_wasserstein(x, y), repeated)
    torch.testing.assert_close(sliced_wasserstein(x, y), sliced_wasserstein(y, x))


def test_sliced_distance_of_a_set_to_itself_is_zero_in_any_order():
    x = normal(30, 4, 0).reshape(30, 2, 2)
    assert sliced_wasserstein(x, x.flip(0)).item() < 1e-15


def test_directions_follow_the_generator():
    x, y = normal(20, 3, 0), normal(20, 3, 1)

    def value(seed):
        return sliced_wasserstein(x, y, 8, torch.Generator().manual_seed(seed)).item()

    assert value(5) == value(5) != value(6)
    assert sliced_wasserstein(x, y).item() == sliced_wasserstein(x, y).item()


@pytest.mark.parametrize("n, m", [(7, 7), (6, 9)])
def test_mmd_is_the_double_sum(n, m, monkeypatch):
    x, y = normal(n, 3, 0), normal(m, 3, 1) + 0.5
    expected = brute_mmd(x, y, median_distance(y))
    assert mmd(x, y).item() == pytest.approx(expected, rel=1e-10)
    assert mmd(x, y, bandwidth=0.7).item() == pytest.approx(brute_mmd(x, y, 0.7), rel=1e-10)
    # In blocks of two rows, too.
    monkeypatch.setattr(two_sample, "BLOCK", 2 * m)
    assert mmd(x, y).item() == pytest.approx(expected, rel=1e-10)


def test_mmd_far_from_the_origin_keeps_its_digits():
    x, y = normal(40, 3, 0), normal(40, 3, 1)
    assert mmd(x + 1e6, y + 1e6).item() == pytest.approx(mmd(x, y).item(), abs=1e-8)


def gaussian_mmd2(d, shift, bandwidth):
    """MMD^2 of N(0, I) and N(mu, I): for X - Y ~ N(m, 2 I), E k = (1 + 2/b^2)^(-d/2) exp(-|m|^2 / (2 (b^2 + 2)))."""
    total = 0.0
    for c in SCALES:
        b2 = (c * bandwidth) ** 2
        total += 2 * (1 + 2 / b2) ** (-d / 2) * (1 - math.exp(-(shift**2) / (2 * (b2 + 2))))
    return total


def repeated_mmd(shift):
    mu = torch.tensor([shift, 0.0], dtype=torch.float64)
    return torch.stack([mmd(normal(200, 2, 2 * i) + mu, normal(200, 2, 2 * i + 1), 1.5) for i in range(100)])


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_mmd_is_unbiased_for_the_closed_form_of_gaussians(shift):
    values = repeated_mmd(shift)
    error = values.std() / 10
    assert abs(values.mean() - gaussian_mmd2(2, shift, 1.5)) < 4 * error
    if shift == 0:
        assert (values < 0).any() and (values > 0).any()


def test_bandwidth_comes_from_the_second_set_alone_and_skips_copies():
    y = normal(30, 2, 0)
    assert median_distance(y) == pytest.approx(torch.pdist(y).median().item())
    x = normal(30, 2, 1)
    assert mmd(100 * x, y).item() == pytest.approx(mmd(100 * x, y, median_distance(y)).item(), rel=1e-12)
    mostly_copies = torch.tensor([[0.0]] * 9 + [[2.0]])
    assert median_distance(mostly_copies) == 2


def test_the_ruler_reads_samples_of_the_law_like_the_other_half():
    ruler = Ruler(normal(2000, 2, 0), 5000, seed=0)
    same, off = ruler(normal(5000, 2, 1)), ruler(normal(5000, 2, 1) + 1)
    assert ruler.m == 1000
    for name in ("sliced_wasserstein", "mmd2"):
        assert off[name] > 10 * abs(ruler.halves[name])
    assert same["sliced_wasserstein"] < 3 * ruler.halves["sliced_wasserstein"]
    assert abs(same["mmd2"]) < 0.02 < 0.2 < off["mmd2"]


def test_the_ruler_takes_disjoint_halves_and_equal_counts():
    data = normal(20, 3, 0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    a, b = data[order[:6]], data[order[6:12]]
    ruler = Ruler(data, 6, seed=3)
    generator = torch.Generator().manual_seed(3)
    assert ruler.m == 6
    assert ruler.splits["sliced_wasserstein"][0] == sliced_wasserstein(b, a, generator=generator).item()
    assert ruler(data[:6] + 0.5)["mmd2"] == mmd(data[:6] + 0.5, a).item()
    assert Ruler((10 * data.abs()).to(torch.uint8), 20, seed=3).m == 10


@pytest.mark.parametrize("n, m", [(1, 100), (100, 3)])
def test_too_few_to_compare_is_refused(n, m):
    with pytest.raises(UsageError, match="leave 1 to compare; at least 2"):
        Ruler(normal(m, 2, 1), n, seed=0)


def test_unfit_sets_are_refused():
    x = normal(5, 2, 0)
    with pytest.raises(UsageError, match=r"shape \(2,\) cannot be compared with \(3,\)"):
        sliced_wasserstein(x, normal(5, 3, 0))
    with pytest.raises(UsageError, match="1 items are too few"):
        mmd(x[:1], x)
    with pytest.raises(UsageError, match="0 items are too few"):
        sliced_wasserstein(x, x[:0])
    with pytest.raises(UsageError, match="projections=0"):
        sliced_wasserstein(x, x, 0)
    with pytest.raises(UsageError, match="5 items are all equal"):
        mmd(x, torch.ones(5, 2))
    with pytest.raises(UsageError, match="bandwidth above 0"):
        mmd(x, x, 0.0)
    bad = x.clone()
    bad[3, 1] = math.nan
    with pytest.raises(NumericalError, match="item 3 of the samples is not finite"):
        sliced_wasserstein(bad, x)
    with pytest.raises(NumericalError, match="item 3 of the data is not finite"):
        mmd(x, bad, 1.0)
