"""The Inception Score: its bounds, torch-fidelity's and torchmetrics' on the same logits, and splits that are fair."""

import math

import pytest
import torch

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.inception_score import ScoreSums, few_of_a_class, inception_score, split_of


def logits(n, c, seed=0):
    return 2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_equals_torch_fidelity_on_the_same_splits():
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    x = logits(400, 12)
    order = torch.cat([(split_of(torch.arange(400), 10) == s).nonzero()[:, 0] for s in range(10)])
    theirs = fidelity.isc_features_to_metric(x[order], splits=10, shuffle=False)
    found = inception_score(x, splits=10)
    assert found["mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found["sd"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_it_equals_torchmetrics_on_one_split():
    from torchmetrics.image.inception import InceptionScore

    theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
    x = logits(200, 7)
    theirs.update(x)
    found = inception_score(x, splits=1)
    assert found["mean"] == pytest.approx(theirs.compute()[0].item(), rel=1e-10)
    assert math.isnan(found["sd"])


@pytest.mark.parametrize("order", ["sorted", "in turn"])
def test_sure_and_even_logits_score_the_number_of_classes_in_any_order(order):
    classes = torch.arange(10)
    label = classes.repeat_interleave(200) if order == "sorted" else classes.repeat(200)
    found = inception_score(1000 * torch.nn.functional.one_hot(label, 10).double(), splits=10)
    # splits are drawn, so their classes are even up to (C - 1) / (2 · 200) in the log
    assert 9.5 < found["mean"] <= 10
    exact = inception_score(1000 * torch.nn.functional.one_hot(label, 10).double(), splits=1)
    assert exact["mean"] == pytest.approx(10, rel=1e-12)


def test_equal_logits_score_one():
    x = logits(1, 5).expand(60, 5)
    assert inception_score(x) == pytest.approx(dict(mean=1, sd=0, splits=10), abs=1e-12)


def test_it_streams_and_a_constant_added_to_the_logits_does_nothing():
    x = logits(333, 6)
    whole = inception_score(x)
    sums = ScoreSums(6, 10)
    for part in x.split(50):
        sums.add(part + 700)
    assert sums.result() == pytest.approx(whole, rel=1e-9)


def test_the_splits_hold_every_item_once_and_are_of_one_size():
    split = split_of(torch.arange(1000), 7)
    assert split.bincount().tolist() == [143] * 6 + [142] or split.bincount().max() - split.bincount().min() <= 1
    assert torch.equal(split[13:40], split_of(torch.arange(13, 40), 7))


@pytest.mark.parametrize("sharp", [1.0, 1000.0])
def test_too_few_a_class_is_told_with_a_bound_of_the_bias_that_holds(sharp):
    """log IS of 30 items a split is below that of 60,000 by log(1 + 9/30) at most; for sure classes by over 0.3 of it."""
    score, many = (inception_score(sharp * logits(60_000, 10), splits=k)["mean"] for k in (2000, 1))
    lost, most = math.log(many / score), math.log1p(9 / 30)
    assert most * (0.3 if sharp > 1 else 0) < lost < most
    told = few_of_a_class(300, 10)
    assert "10 splits has 30 items for 10 classes" in told
    assert f"by {1 - 1 / 1.3:.0%} at most" in told
    assert few_of_a_class(1000, 10) == few_of_a_class(5, 0) == ""
    assert "each of its 5 splits has 1 items" in few_of_a_class(5, 3)


def test_bad_values_are_refused():
    with pytest.raises(NumericalError, match="not finite"):
        inception_score(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(UsageError, match="splits=0"):
        inception_score(logits(5, 3), splits=0)
    with pytest.raises(UsageError, match="at least one"):
        ScoreSums(3).result()
