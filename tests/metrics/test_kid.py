"""KID: torchmetrics' and torch-fidelity's on the same features, and no bias."""

import math

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics import two_sample as module
from diffcli.metrics.kid import kid


def normal(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_on_all_items_it_equals_torchmetrics():
    x, y = normal(150, 12, 0), normal(150, 12, 1, 0.3)
    found = kid(x, y, size=150)
    assert found["mean"] == pytest.approx(poly_mmd(x, y).item(), rel=1e-10)
    assert found["subsets"] == 1
    assert math.isnan(found["sd"])


def test_on_subsets_it_equals_torch_fidelity(monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    import numpy as np

    x, y = normal(90, 6, 0), normal(110, 6, 1, 0.2)
    how = dict(kid_subsets=8, kid_subset_size=40, kid_kernel="poly", kid_kernel_poly_degree=3)
    how |= dict(kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=5, verbose=False)
    theirs = fidelity.kid_features_to_metric(x, y, **how)
    # the same subsets: theirs are numpy's draws
    rng = np.random.RandomState(5)
    draws = iter([torch.from_numpy(rng.choice(n, 40, replace=False)) for _ in range(8) for n in (90, 110)])
    monkeypatch.setattr(torch, "randperm", lambda n, generator: next(draws))
    found = kid(x, y, subsets=8, size=40)
    assert found["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert found["sd"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)


def test_blocks_do_not_change_it(monkeypatch):
    x, y = normal(60, 5, 0), normal(70, 5, 1)
    whole = kid(x, y, subsets=3, size=50, seed=1)
    monkeypatch.setattr(module, "BLOCK", 200)
    assert kid(x, y, subsets=3, size=50, seed=1) == pytest.approx(whole, rel=1e-10)
    assert kid(x, y, subsets=3, size=50, seed=2)["mean"] != pytest.approx(whole["mean"], rel=1e-3)


def test_for_two_samples_of_one_law_its_mean_is_zero():
    found = torch.tensor([kid(normal(12, 3, 2 * i), normal(12, 3, 2 * i + 1), size=12)["mean"] for i in range(600)])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean()) < 4 * error
    # a biased estimate (i = j counted in) would lie at E k(x, x) / 12 > 0.3
    assert error < 0.05


def test_it_is_the_closed_form_for_constant_features():
    # k(a, b) = (ab + 1)³ in one dimension: (a² + 1)³ + (b² + 1)³ - 2 (ab + 1)³
    x, y = torch.full((30, 1), 2.0), torch.full((40, 1), -0.5)
    assert kid(x, y, subsets=4)["mean"] == pytest.approx(5**3 + 1.25**3 - 0)
    assert kid(x, y, subsets=4)["sd"] == pytest.approx(0, abs=1e-12)


def test_it_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match=r"shape \(4,\) cannot be compared with \(3,\)"):
        kid(normal(5, 3, 0), normal(5, 4, 0))
    with pytest.raises(UsageError, match="1 items are too few"):
        kid(normal(1, 3, 0), normal(5, 3, 0))
    with pytest.raises(UsageError, match="too few"):
        kid(normal(5, 3, 0), normal(5, 3, 0), subsets=0)
    with pytest.raises(NumericalError, match="item 0 of the samples is not finite"):
        kid(normal(5, 3, 0), torch.full((5, 3), math.inf))
