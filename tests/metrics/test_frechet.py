"""The Fréchet distance: closed forms, invariances, and torchmetrics' on the same features; moments that stream and merge."""

import math

import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.features.pixels import Pixels
from diffcli.metrics.features.statistics import Collector, Moments, collect
from diffcli.metrics.frechet import frechet


def normal(n, d, seed, scale=1.0, shift=0.0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.linspace(0.5, 2, d, dtype=torch.float64) * scale + shift


def gaussian(mean, cov, n=1000):
    """Moments that have this mean and covariance exactly."""
    return Moments(n, mean, cov * (n - 1))


def covariance(d, seed):
    a = normal(2 * d, d, seed)
    return a.T @ a / (2 * d)


def rotation(d, seed):
    return torch.linalg.qr(normal(d, d, seed)).Q


@pytest.mark.parametrize(("n", "d"), [(400, 16), (20, 32), (100, 100)])
def test_it_equals_torchmetrics_on_the_same_features(n, d):
    x, y = normal(n, d, 0), normal(n + 7, d, 1, 1.3, 0.5)
    theirs = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(theirs, rel=1e-6 if n < d else 1e-9)


def test_of_diagonal_covariances_it_is_the_sum_over_dimensions():
    m, s = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 2.0, 0.0]).double()
    n, r = torch.tensor([0.0, 1.0, 0.5]).double(), torch.tensor([1.0, 0.5, 4.0]).double()
    expected = ((m - n) ** 2 + (s - r) ** 2).sum().item()
    assert frechet(gaussian(m, (s**2).diag()), gaussian(n, (r**2).diag())) == pytest.approx(expected, rel=1e-12)


def test_of_covariances_that_commute_it_is_that_of_their_roots():
    u = rotation(8, 0)
    a, b = torch.linspace(0.1, 2, 8).double(), torch.linspace(3, 0.2, 8).double()
    cov = [u @ (v**2).diag() @ u.T for v in (a, b)]
    zero = torch.zeros(8, dtype=torch.float64)
    assert frechet(gaussian(zero, cov[0]), gaussian(zero, cov[1])) == pytest.approx(((a - b) ** 2).sum().item())


def test_it_is_symmetric_zero_for_equal_moments_and_the_same_in_a_rotated_space():
    a, b = gaussian(normal(1, 24, 0)[0], covariance(24, 1)), gaussian(normal(1, 24, 2)[0], covariance(24, 3))
    d = frechet(a, b)
    assert frechet(b, a) == pytest.approx(d, rel=1e-10)
    assert abs(frechet(a, a)) < 1e-10 * a.cov.trace()
    q = rotation(24, 4)
    turned = [gaussian(q @ m.mean + 3, q @ m.cov @ q.T) for m in (a, b)]
    assert frechet(*turned) == pytest.approx(d, rel=1e-10)
    # scaling all features by c scales it by c²
    scaled = [gaussian(5 * m.mean, 25 * m.cov) for m in (a, b)]
    assert frechet(*scaled) == pytest.approx(25 * d, rel=1e-10)


def test_images_of_a_known_law_are_at_their_closed_form():
    # all pixels of an image move together by ±a or ±b: one direction has all the variance, the others have none
    n, a, b, shift = 2000, 10, 30, 4
    balanced = torch.tensor([1, -1]).repeat(n // 2).reshape(n, 1, 1, 1)
    base = torch.arange(40, 40 + 25).reshape(1, 1, 5, 5)
    left = collect((base + a * balanced).split(170), Pixels(), 256, samples=False).moments
    right = collect((base + shift + b * balanced).split(64), Pixels(), 256, samples=True).moments
    expected = 25 * ((b - a) ** 2 * n / (n - 1) + shift**2) / 255**2
    assert frechet(left, right) == pytest.approx(expected, rel=1e-9)


def test_a_sample_from_the_law_approaches_it_from_above():
    cov, d = covariance(6, 0), 6
    root = torch.linalg.cholesky(cov)
    exact = gaussian(torch.zeros(d, dtype=torch.float64), cov, 10**6)
    g = torch.Generator().manual_seed(0)
    biases = []
    for n in (100, 400):
        draws = [torch.randn(n, d, generator=g, dtype=torch.float64) @ root.T for _ in range(60)]
        biases.append(sum(frechet(Moments.of(x), exact) for x in draws) / len(draws))
    # a bias of order 1/n: the ratio of its mean over 60 draws is 4 to about 10 %
    assert 3 < biases[0] / biases[1] < 5.3


def test_dimensions_that_differ_one_item_and_nan_are_refused():
    a = Moments.of(normal(10, 4, 0))
    with pytest.raises(UsageError, match="4 and of 5 dimensions"):
        frechet(a, Moments.of(normal(10, 5, 0)))
    with pytest.raises(UsageError, match="at least 2 items"):
        frechet(a, Moments.of(normal(1, 4, 0)))
    with pytest.raises(NumericalError, match="not finite"):
        frechet(a, Moments.of(torch.full((9, 4), math.nan)))


# Moments


def test_moments_merge_to_those_of_all_in_any_order_and_grouping():
    x = normal(501, 7, 0, shift=1e6)
    whole = Moments.of(x)
    assert torch.allclose(whole.cov, x.T.cov(), rtol=1e-12)
    parts = [Moments.of(p) for p in x.split([1, 200, 99, 201])]
    a, b, c, d = parts
    for found in (a.merge(b).merge(c).merge(d), d.merge(b).merge(a.merge(c)), (c.merge(a)).merge(d.merge(b))):
        assert found.n == 501
        assert torch.allclose(found.mean, whole.mean, rtol=1e-15, atol=0)
        # a mean of a million leaves 1e-16 · 1e12 of the naive sum of squares: no digits would be right
        assert torch.allclose(found.cov, whole.cov, rtol=1e-9, atol=1e-9)
    left = whole.without(b)
    assert left.n == 301
    others = torch.cat([x[:1], x[201:]])
    assert torch.allclose(left.cov, others.T.cov(), rtol=1e-6, atol=1e-6)
    assert torch.allclose(left.mean, others.mean(0), rtol=1e-14)


def test_the_statistics_are_bit_identical_for_every_batch_size():
    x = torch.randint(0, 256, (700, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    found = [collect(x.split(size), Pixels(), 256, samples=False, kept=300) for size in (1, 128, 300, 700)]
    for other in found[1:]:
        assert torch.equal(other.moments.mean, found[0].moments.mean)
        assert torch.equal(other.moments.scatter, found[0].moments.scatter)
        assert torch.equal(other.gathered.features, found[0].gathered.features)
    assert found[0].moments.n == 700
    assert torch.allclose(found[0].moments.cov, (x.flatten(1) / 255).double().T.cov(), rtol=1e-5)
    assert torch.equal(found[0].gathered.features, (x[:300].flatten(1).double() / 255))


def test_what_is_kept_of_more_items_is_spread_over_them_and_each_is_who_it_says():
    x = torch.arange(1000.0)[:, None]
    found = collect(x.split(77), Pixels(), None, samples=True, kept=200, of=1000).gathered
    assert len(found.index.unique()) == 200
    assert torch.equal(found.features[:, 0], found.index.double())
    # the mean of 200 of 1000 has a standard error of 18
    assert abs(found.index.double().mean() - 499.5) < 75


def test_memory_does_not_grow_with_the_number_of_items():
    collector = Collector(Pixels(), None, samples=True, kept=50)

    def held():
        tensors = [collector._moments.mean, collector._moments.scatter, *collector._rows, *collector._waiting]
        return sum(t.untyped_storage().nbytes() for t in tensors)

    sizes = []
    for seed in range(40):
        collector.add(normal(96, 5, seed))
        if seed > 2:
            sizes.append(held() - sum(t.untyped_storage().nbytes() for t in collector._waiting))
    assert max(sizes) == min(sizes)
    assert sum(map(len, collector._waiting)) < 128
    assert collector.finish().moments.n == 40 * 96
