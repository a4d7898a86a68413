import math

import pytest
import torch
from scipy.stats import chi2, multivariate_normal

from diffcli.data.mixture_file import load_mixture
from diffcli.diffusion.exact import GaussianMixture
from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.mode_coverage import WITHIN, mode_coverage

NAMES = ("four", "two", "grid", "ring", "line", "gaussian", "sixteen")


def drawn(mixture, n, seed=0):
    return mixture.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_exact_draws_have_the_weights_and_miss_no_mode(name):
    mixture = load_mixture(name, None)
    found = mode_coverage(drawn(mixture, 5000)[0], mixture)
    assert found.covered == found.modes == len(mixture.weights)
    assert found.missing == found.unknown == []
    for share, weight, error, of_weight in zip(
        found.share, found.weights, found.std_err, found.weight_std_err, strict=True
    ):
        assert abs(share - weight) <= 4 * of_weight + 1e-12
        assert error <= 1.2 * of_weight + 1e-12
    assert found.total_variation < 2.5 * found.total_variation_floor + 1e-12
    assert found.between < found.between_exact + 4 * math.sqrt(found.between_exact / 5000)


@pytest.mark.parametrize("d", [1, 2, 16])
def test_of_one_gaussian_the_chi_square_quantile_leaves_out_what_it_says(d):
    one = GaussianMixture(torch.ones(1), torch.full((1, d), 3.0), torch.diag(torch.linspace(0.1, 4, d))[None])
    found = mode_coverage(drawn(one, 40000)[0], one)
    assert found.radius == pytest.approx(math.sqrt(chi2.ppf(WITHIN, d)))
    assert abs(found.between - (1 - WITHIN)) < 4 * math.sqrt(WITHIN * (1 - WITHIN) / 40000)
    assert found.between_std_err == pytest.approx(math.sqrt(found.between * (1 - found.between) / 40000))
    assert found.near == [40000 - round(found.between * 40000)]


def test_it_is_posterior_and_mahalanobis_distance_by_another_library():
    mixture = load_mixture("four", None)
    x = 2.5 * torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    laws = [multivariate_normal(m.numpy(), c.numpy()) for m, c in zip(mixture.means, mixture.covs, strict=True)]
    joint = torch.stack([w * torch.from_numpy(p.pdf(x.numpy())) for w, p in zip(mixture.weights, laws, strict=True)], 1)
    gap = x[:, None] - mixture.means
    square = torch.einsum("nki,kij,nkj->nk", gap, torch.linalg.inv(mixture.covs), gap)
    near = square <= chi2.ppf(WITHIN, 2)
    best = joint.argmax(1)
    found = mode_coverage(x, mixture)
    assert 0.1 < found.between < 0.9
    assert found.between == pytest.approx(1 - near.any(1).double().mean().item())
    assert found.near == [int(((best == k) & near[:, k]).sum()) for k in range(4)]
    posterior = joint / joint.sum(1, keepdim=True)
    expected = posterior.mean(0)
    torch.testing.assert_close(torch.tensor(found.std_err, dtype=torch.float64), posterior.std(0) / math.sqrt(300))
    torch.testing.assert_close(torch.tensor(found.share, dtype=torch.float64), expected)
    assert found.total_variation == pytest.approx(0.5 * (expected - mixture.weights).abs().sum().item())


def test_modes_left_out_are_missing():
    mixture = load_mixture("ring", None)
    x, k = drawn(mixture, 4000)
    kept = x[(k != 2) & (k != 5)]
    found = mode_coverage(kept, mixture)
    assert found.missing == [2, 5] and found.covered == 6 and found.near[2] == 0
    assert found.total_variation == pytest.approx(0.25, abs=0.02)
    # A twentieth of what a mode should have is a mode that is missing still.
    few = torch.cat([kept, x[k == 2][: len(kept) // 160]])
    assert few.shape[0] > len(kept) and mode_coverage(few, mixture).missing == [2, 5]
    # Half as often as it should be is not missing, and shows in the shares.
    half = mode_coverage(torch.cat([kept, x[k == 2][:250], x[k == 5]]), mixture)
    assert half.missing == [] and half.share[2] < half.weights[2] - 4 * half.weight_std_err[2]


def test_samples_between_modes_are_counted():
    mixture = load_mixture("ring", None)
    x = torch.cat([drawn(mixture, 300)[0], torch.zeros(100, 2, dtype=torch.float64)])
    assert mode_coverage(x, mixture).between == pytest.approx(0.25, abs=0.01)
    assert sum(mode_coverage(x, mixture).near) <= 300


def test_what_few_samples_cannot_tell_is_not_called_missing():
    mixture = load_mixture("four", None)
    found = mode_coverage(mixture.means[:1].expand(10, 2), mixture)
    # ten perfect samples show none of mode 1 with probability 0.7^10 = 0.03, of mode 0 with 0.006
    assert found.unknown == [1, 2, 3] and found.missing == [] and found.covered == 1


def test_the_same_mixture_and_samples_turned_and_moved_give_the_same():
    mixture = load_mixture("four", None)
    x = drawn(mixture, 500)[0]
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    other = GaussianMixture(mixture.weights, mixture.means @ turn + 7, turn.T @ mixture.covs @ turn)
    a, b = mode_coverage(x, mixture), mode_coverage((x @ turn + 7).reshape(500, 2, 1), other)
    assert a.near == b.near and a.between == b.between
    assert a.share == pytest.approx(b.share)


def test_unfit_samples_are_refused():
    mixture = load_mixture("four", None)
    with pytest.raises(UsageError, match=r"shape \(3,\) cannot be compared with \(2,\)"):
        mode_coverage(torch.zeros(5, 3), mixture)
    with pytest.raises(UsageError, match="1 samples show no share"):
        mode_coverage(torch.zeros(1, 2), mixture)
    with pytest.raises(NumericalError, match="item 1 of the samples is not finite"):
        mode_coverage(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]), mixture)
