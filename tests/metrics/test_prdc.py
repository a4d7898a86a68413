"""Precision, recall, density, coverage: the released programs' on the same features, and what sets in plain places give."""

import pytest
import torch

from diffcli.errors import UsageError
from diffcli.metrics import prdc as module
from diffcli.metrics.prdc import prdc, squares


def normal(n, d, seed, shift=0.0, scale=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


CASES = [(120, 150, 4, 0.5, 1.0), (90, 60, 10, 0.0, 0.6), (200, 200, 2, 1.0, 1.5)]


@pytest.mark.parametrize(("n", "m", "d", "shift", "scale"), CASES)
def test_it_equals_the_authors_program(n, m, d, shift, scale, capsys):
    theirs_of = pytest.importorskip("prdc").compute_prdc
    real, fake = normal(n, d, 0), normal(m, d, 1, shift, scale)
    for k in (3, 5):
        theirs = theirs_of(real.numpy(), fake.numpy(), k)
        assert vars(prdc(real, fake, k, k)) == pytest.approx(theirs, abs=1e-12)
    both = prdc(real, fake)  # k = 3 and 5 by default
    assert both.precision == prdc(real, fake, 3, 3).precision
    assert both.coverage == prdc(real, fake, 5, 5).coverage
    assert 0.05 < both.precision < 1  # not by both being empty


@pytest.mark.parametrize(("n", "m", "d", "shift", "scale"), CASES)
def test_precision_and_recall_equal_torch_fidelity(n, m, d, shift, scale):
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = normal(n, d, 0), normal(m, d, 1, shift, scale)
    theirs = fidelity.calculate_precision_recall_full(
        fake, real, neighborhood=3
    )  # (precision, recall), generated first
    found = prdc(real, fake)
    assert (found.precision, found.recall) == pytest.approx(theirs, abs=1e-6)


def test_blocks_do_not_change_it(monkeypatch):
    real, fake = normal(100, 3, 0), normal(130, 3, 1, 0.5)
    whole = prdc(real, fake)
    monkeypatch.setattr(module, "BLOCK", 300)
    assert prdc(real, fake) == whole


def test_a_set_is_in_its_own_balls_and_far_sets_are_in_none():
    x = normal(80, 6, 0, shift=1000.0)
    same = prdc(x, x.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    # each item lies in its own ball and in those of the items it is among the 5 nearest of: 6 in all on average, and rims hold
    assert same.density == pytest.approx(6 / 5)
    far = prdc(x, x + 100)
    assert vars(far) == dict(precision=0, recall=0, density=0, coverage=0)


def test_a_far_item_makes_no_copies_of_near_ones():
    """Round-off is measured by the pair's own norms, not by the largest."""
    x = torch.tensor([[0.0], [1e-3], [1e6]], dtype=torch.float64)
    assert squares(x, x)[0, 1] == pytest.approx(1e-6)


def test_copies_are_at_no_distance():
    # black images: a ball of radius 0 holds its own copies, whatever the round-off of their squares
    x = torch.cat([torch.full((10, 20), 1 / 3, dtype=torch.float64), normal(30, 20, 0)])
    assert squares(x[:10], x[:10]).eq(0).all()
    same = prdc(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_dropped_modes_lower_recall_and_coverage_but_not_precision_or_density():
    modes = torch.tensor([[0.0, 0.0], [50.0, 0.0]], dtype=torch.float64)
    real = modes.repeat_interleave(300, 0) + normal(600, 2, 0)
    fake = modes[:1] + normal(600, 2, 1)
    found = prdc(real, fake)
    assert found.precision > 0.95
    assert 0.45 < found.recall < 0.51
    assert 0.4 < found.coverage < 0.51
    # of one law the density is 1; half the balls catch nothing, and twice as many fakes are near each of the others
    assert found.density == pytest.approx(1, abs=0.1)


def test_too_few_items_or_neighbours_are_refused():
    with pytest.raises(UsageError, match="at least 6"):
        prdc(normal(5, 2, 0), normal(50, 2, 0))
    with pytest.raises(UsageError, match="below 1"):
        prdc(normal(5, 2, 0), normal(50, 2, 0), k=0)
