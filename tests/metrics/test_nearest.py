import math

import pytest
import torch

from diffcli.data.base import TensorItems
from diffcli.errors import NumericalError, UsageError
from diffcli.metrics import nearest as module
from diffcli.metrics.nearest import Nearest


def normal(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute(queries, items, k):
    gaps = (queries[:, None] - items).square().sum(-1).sqrt().sort(dim=1, stable=True)
    return gaps.values[:, :k], gaps.indices[:, :k]


@pytest.mark.parametrize("d", [1, 3, 16, 17, 300])  # to either side of LOW
@pytest.mark.parametrize("blocks", [(7, 5), (4096, 4096), (64, 3)])
def test_they_are_those_of_all_distances_in_any_blocks(d, blocks, monkeypatch):
    queries, items = normal(23, d, 0), normal(101, d, 1)
    for name, size in zip(("ITEMS", "ROWS"), blocks, strict=True):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(module, "PAIRS", 4 * d)
    distances, indices = Nearest(items, 3)(queries)
    expected = brute(queries, items, 3)
    assert distances.dtype == torch.float64
    torch.testing.assert_close(distances, expected[0], rtol=1e-12, atol=0)
    assert (indices == expected[1]).all()


def test_of_large_items_fewer_are_read_at_once(monkeypatch):
    monkeypatch.setattr(module, "HELD", 300 * 8)
    sizes, items = [], normal(50, 300, 1)
    found = Nearest(items, 2, embed=lambda x: sizes.append(len(x)) or x)(normal(4, 300, 0))
    assert sizes == [8] * 6 + [2]
    assert (found[1] == brute(normal(4, 300, 0), items, 2)[1]).all()


def test_near_copies_far_from_the_origin_keep_their_digits():
    items = (1000 + normal(500, 400, 0)).float()
    queries = items[:50].double() + 1e-6
    distances, indices = Nearest(items, 2)(queries)
    # In float32 alone the distance would be lost: 1e-6 of 1000 is below its resolution.
    torch.testing.assert_close(distances[:, 0], torch.full((50,), 1e-6 * 20, dtype=torch.float64), rtol=1e-6, atol=0)
    assert (indices[:, 0] == torch.arange(50)).all()


def test_a_nearer_copy_in_a_later_block_is_not_lost_to_rounding(monkeypatch):
    monkeypatch.setattr(module, "ITEMS", 40)
    queries = normal(40, 300, 0)
    items = torch.cat([queries + 1e-4, queries.flip(0) + 5e-5])  # squares far below what float32 resolves
    distances, indices = Nearest(items)(queries)
    assert (indices[:, 0] == torch.arange(79, 39, -1)).all()
    torch.testing.assert_close(distances[:, 0], torch.full((40,), 5e-5 * 300**0.5, dtype=torch.float64))


@pytest.mark.parametrize("d", [2, 40])
def test_an_item_does_not_find_itself_where_it_is_told_not_to(d, monkeypatch):
    monkeypatch.setattr(module, "ITEMS", 8)
    items = normal(30, d, 0)
    items[11] = items[4]  # but finds its copy
    distances, indices = Nearest(items, 2)(items, skip=torch.arange(30))
    expected = brute(items, items, 3)
    lone = [i for i in range(30) if i not in (4, 11)]
    torch.testing.assert_close(distances[lone], expected[0][lone, 1:], rtol=1e-12, atol=0)
    assert (indices[lone] == expected[1][lone, 1:]).all()
    assert indices[4, 0] == 11 and indices[11, 0] == 4 and distances[4, 0] == 0


@pytest.mark.parametrize("d", [2, 40])
def test_of_equal_items_the_first_is_named(d, monkeypatch):
    monkeypatch.setattr(module, "ITEMS", 6)
    items = normal(5, d, 0).repeat(4, 1)
    distances, indices = Nearest(items, 4)(items[:5])
    assert (distances == 0).all()
    assert (indices == torch.arange(5)[:, None] + torch.tensor([0, 5, 10, 15])).all()


def test_data_sets_are_read_in_order_and_embedded():
    x = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    queries = normal(6, 16, 1)
    found = Nearest(TensorItems(x), 2, lambda a: a.flatten(1).float() / 128 - 1)(queries.reshape(6, 4, 4))
    expected = brute(queries, x.flatten(1).double() / 128 - 1, 2)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] == expected[1]).all()


def test_unfit_sets_are_refused():
    items = normal(5, 2, 0)
    for k in (0, 6):
        with pytest.raises(UsageError, match=f"5 items have no {k} nearest"):
            Nearest(items, k)
    with pytest.raises(UsageError, match="no 5 nearest others"):
        Nearest(items, 5)(items, skip=torch.arange(5))
    with pytest.raises(UsageError, match="3 coordinates have no distance to items of 2"):
        Nearest(items)(normal(4, 3, 0))
    items[3, 1] = math.nan
    with pytest.raises(NumericalError, match="item 3 is not finite"):
        Nearest(items)(normal(4, 2, 0))
    with pytest.raises(NumericalError, match="query 3 is not finite"):
        Nearest(normal(4, 2, 0))(items)
