"""Agreement: the share of the samples that a classifier takes for the label that they were drawn for."""

import numpy as np
import pytest
import torch

from diffcli.data.base import TensorItems
from diffcli.data.transform import Levels
from diffcli.metrics.evaluation import evaluate
from diffcli.metrics.feature_measures import FeatureMeasures
from diffcli.metrics.features.base import FeatureNetwork
from diffcli.metrics.features.reference import reference
from diffcli.metrics.kept import kept
from diffcli.metrics.taken import Taken

IMAGE, LEVELS = (1, 2, 2), 8


class ByCorner(FeatureNetwork):
    """Takes an item for the class that its first value names, in an order of its own: 3 - value."""

    name = "corner"

    def compute(self, x, levels):
        return x.flatten(1), 10.0 * torch.nn.functional.one_hot(3 - x[:, 0, 0, 0].long().clamp(0, 3), 4).to(x)

    def preprocessing(self):
        return {}


def items(n, wrong, seed=0):
    """Labelled items whose first value is their label, but for those of which every `wrong`-th is another's."""
    x = torch.randint(0, LEVELS, (n, *IMAGE), generator=torch.Generator().manual_seed(seed))
    y = torch.arange(n) % 4
    x[:, 0, 0, 0] = y
    x[::wrong, 0, 0, 0] = (y[::wrong] + 1) % 4
    return TensorItems(x.to(torch.uint8), y)


def agreement(x, labels, tmp_path, n, sizes, floor=0):
    network = ByCorner()
    network.setup(IMAGE, LEVELS)
    found = reference(items(40, 10**6), network, LEVELS, "test", cache=tmp_path)
    others = items(floor, 5, seed=1) if floor else None
    measure = FeatureMeasures(
        network, LEVELS, found, others, "train", n, 100, torch.tensor(labels), torch.tensor([3, 2, 1, 0])
    )
    pieces = np.split(x, np.cumsum(sizes)[:-1])
    batches = ((piece, np.zeros(len(piece), np.int64)) for piece in pieces)
    take = lambda: Taken(Levels(LEVELS), 4, measure.collector())  # noqa: E731
    return next(f for f in evaluate(batches, n, [measure], take).figures if f.name == "agreement")


@pytest.mark.parametrize("sizes", [(60,), (7, 13, 40), (31, 29)])
def test_each_sample_is_held_to_the_label_of_its_number(tmp_path, sizes):
    labels, n = [2, 0, 3], 20  # 20 is no multiple of 3: the second repeat begins with another label
    x = np.zeros((60, *IMAGE), np.float32)
    x[:, 0, 0, 0] = [labels[i % 3] for i in range(60)]
    x[[1, 25, 26, 27], 0, 0, 0] = 1  # which nobody asked for
    assert agreement(x, labels, tmp_path, n, sizes).values == pytest.approx([19 / 20, 17 / 20, 1.0])


def test_a_sample_without_a_label_is_not_counted(tmp_path):
    x = np.zeros((8, *IMAGE), np.float32)
    x[:, 0, 0, 0] = [0, 3, 0, 1, 1, 2, 0, 0]
    found = agreement(x, [0, -1], tmp_path, 8, (8,))
    assert found.values == pytest.approx([3 / 4])  # of items 0, 2, 4, 6


def test_real_items_are_held_to_their_own_labels(tmp_path):
    x = np.zeros((10, *IMAGE), np.float32)
    found = agreement(x, [0], tmp_path, 10, (10,), floor=50)
    assert np.mean(found.floor) == pytest.approx(0.8) and len(found.floor) == 5


def test_a_kept_floor_is_of_its_labels(tmp_path):
    """Real items with other labels have another floor, though no picture differs."""
    network, asked = ByCorner(), (torch.arange(4), torch.tensor([3, 2, 1, 0]))
    network.setup(IMAGE, LEVELS)
    found, one = reference(items(40, 10**6), network, LEVELS, "test", cache=tmp_path), items(20, 5, seed=1)
    other = TensorItems(one.x, (one.y + 1) % 4)
    keep = lambda key, make: kept(key, make, tmp_path)  # noqa: E731
    floors = [
        FeatureMeasures(network, LEVELS, found, o, "train", 20, 100, *asked, keep=keep).floor() for o in (one, other)
    ]
    assert floors[0]["agreement"] == pytest.approx([0.8]) and floors[1]["agreement"] == pytest.approx([0.2])
