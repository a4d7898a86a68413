import math

import pytest
import torch

from diffcli.data.mixture_file import load_mixture
from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.known_density import kl_from_log_densities, kl_to_density, log_density


def normal(n, d, seed, scale=1.0):
    return scale * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def log_prob(x, scale=1.0):
    """Of N(0, scale^2 I)."""
    x = x.flatten(1) / scale
    return (-0.5 * x**2 - 0.5 * math.log(2 * math.pi) - math.log(scale)).sum(1)


def gaussian_kl(d, scale):
    """KL(N(0, s^2 I) || N(0, I)) = d (s^2 - 1 - log s^2) / 2."""
    return d * (scale**2 - 1 - 2 * math.log(scale)) / 2


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 0.8, 1.5])
def test_gaussians_have_their_closed_form(d, scale):
    found = kl_to_density(normal(2000, d, 0, scale), log_prob, normal(2000, d, 1))
    assert abs(found.excess - gaussian_kl(d, scale)) < 4 * found.excess_std_err
    assert found.excess == found.kl - found.floor
    assert found.excess_std_err == math.hypot(found.std_err, found.floor_std_err)
    if d == 1:  # where the estimator's own bias is far below its noise
        assert abs(found.kl - gaussian_kl(d, scale)) < 4 * found.std_err
        assert abs(found.floor) < 4 * found.floor_std_err


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_the_standard_error_is_the_spread_of_repeated_estimates(scale):
    found = [kl_to_density(normal(300, 2, i, scale), log_prob) for i in range(120)]
    spread = torch.tensor([f.kl for f in found]).std().item()
    mean_square = sum(f.std_err**2 for f in found) / len(found)
    # the spread of 120 is known to 6.5 %, the mean of the squares to less
    assert math.sqrt(mean_square) == pytest.approx(spread, rel=0.26)


def test_the_density_is_that_of_the_kth_other_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    radius = torch.tensor([3.0, 2.0, 3.0, 6.0])  # to the second nearest other
    euler = 0.5772156649015329
    psi = {2: 1 - euler, 4: 1 + 1 / 2 + 1 / 3 - euler}
    expected = psi[2] - psi[4] - (2 * radius.double()).log()
    torch.testing.assert_close(log_density(x, k=2), expected)
    # in the plane the ball of radius r has the area pi r^2
    flat = torch.cat([x, torch.zeros_like(x)], 1)
    torch.testing.assert_close(log_density(flat, k=2), psi[2] - psi[4] - (math.pi * radius.double() ** 2).log())


def test_of_exact_draws_the_entropy_is_that_of_the_law():
    for d in (1, 2):
        x = normal(4000, d, 5)
        entropy = d * 0.5 * math.log(2 * math.pi * math.e)
        assert -log_density(x).mean().item() == pytest.approx(entropy, abs=0.06)


def test_it_keeps_its_value_when_samples_and_density_are_scaled_and_moved():
    x = normal(300, 2, 0, 1.3)
    moved = kl_to_density(
        (5 * x + 100).reshape(300, 2, 1), lambda y: log_prob((y.flatten(1) - 100) / 5) - 2 * math.log(5)
    )
    assert moved.kl == pytest.approx(kl_to_density(x, log_prob).kl, abs=1e-9)
    assert moved.n == 300 and moved.floor is moved.excess is None


def test_a_wrong_law_of_a_mixture_costs_more_than_the_floor():
    mixture = load_mixture("four", None)
    generator = torch.Generator().manual_seed(0)
    x, k = mixture.sample(2000, generator)
    exact = mixture.sample(2000, generator)[0]
    same = kl_to_density(x, mixture.log_prob, exact)
    assert abs(same.excess) < 4 * same.excess_std_err
    # without the last mode, of weight 0.1: KL = -log 0.9
    dropped = kl_to_density(x[k != 3], mixture.log_prob, exact)
    assert abs(dropped.excess + math.log(0.9)) < 4 * dropped.excess_std_err
    assert dropped.excess > 2 * dropped.excess_std_err


def test_from_log_densities_it_is_the_mean_of_their_difference():
    x = normal(5000, 3, 0)
    found = kl_from_log_densities(log_prob(x), log_prob(x, 1.4).float())
    # KL(N(0, I) || N(0, s^2 I)), the closed form with 1/s
    assert abs(found.kl - gaussian_kl(3, 1 / 1.4)) < 4 * found.std_err
    gap = log_prob(x) - log_prob(x, 1.4)
    assert found.std_err == pytest.approx(gap.std().item() / math.sqrt(5000), rel=1e-5)
    assert kl_from_log_densities(log_prob(x), log_prob(x)).kl == 0


def test_unfit_samples_are_refused():
    x = normal(200, 2, 0)
    with pytest.raises(UsageError, match="density of 95 samples cannot be estimated; at least 96"):
        kl_to_density(x[:95], log_prob)
    with pytest.raises(UsageError, match="5 of 200 samples equal 4 others"):
        kl_to_density(torch.cat([x[:195], x[:1].expand(5, 2) + 9]), log_prob)
    bad = x.clone()
    bad[3, 1] = math.nan
    with pytest.raises(NumericalError, match="log p of item 3 is nan"):
        kl_to_density(bad, log_prob)
    with pytest.raises(NumericalError, match="query 7 is not finite"):
        kl_to_density(torch.where(torch.arange(200)[:, None] == 7, math.inf, x), lambda y: y.new_zeros(len(y)))
    with pytest.raises(UsageError, match="at least 2 items"):
        kl_from_log_densities(torch.zeros(1), torch.zeros(1))
    with pytest.raises(UsageError, match=r"\(3,\) and \(4,\)"):
        kl_from_log_densities(torch.zeros(3), torch.zeros(4))
    with pytest.raises(NumericalError, match="log q of item 1 is -inf"):
        kl_from_log_densities(torch.zeros(3), torch.tensor([0.0, -math.inf, 0.0]))
