"""Figures of real items on disk: the same as computed, and computed again where anything that they depend on differs."""

import json

import pytest
import torch

from diffcli.data.base import TensorItems
from diffcli.data.transform import Levels
from diffcli.metrics import feature_measures
from diffcli.metrics.feature_measures import FeatureMeasures
from diffcli.metrics.features.pixels import Pixels
from diffcli.metrics.features.reference import reference
from diffcli.metrics.kept import kept
from diffcli.metrics.measures import TwoSample
from diffcli.metrics.prdc import balls_of, prdc

IMAGE = (1, 4, 4)


def items(n, seed):
    x = torch.randint(0, 17, (n, *IMAGE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return TensorItems(x)


class Counted:
    """Makes values, and counts how often."""

    def __init__(self, values):
        self.values, self.times = values, 0

    def __call__(self):
        self.times += 1
        return self.values


def test_figures_are_computed_once_for_a_key(tmp_path):
    make = Counted({"a": [0.1, 1 / 3], "b": [1e-300]})
    assert kept({"n": 1}, make, tmp_path / "new") == kept({"n": 1}, make, tmp_path / "new") == make.values
    assert make.times == 1
    kept({"n": 2}, make, tmp_path / "new")
    assert make.times == 2 and not list((tmp_path / "new").glob(".*"))


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1}', "[]", '{"a": [1.0]}', "other key", "text", "infinite"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    make = Counted({"a": [0.5]})
    kept({}, make, tmp_path)
    (file,) = tmp_path.iterdir()
    node = json.loads(file.read_text())
    changed = {
        "other key": {"key": "{}"},
        "text": {"values": {"a": "x"}},
        "infinite": {"values": {"a": [float("inf")]}},
    }
    file.write_text(json.dumps(node | changed[damage]) if damage in changed else damage)
    assert kept({}, make, tmp_path) == make.values and make.times == 2
    assert json.loads(file.read_text()) == node


def test_what_cannot_be_kept_is_computed_each_time(tmp_path):
    (tmp_path / "file").touch()
    for values, folder in (({"a": [0.5]}, tmp_path / "file"), ({"a": [float("inf")]}, tmp_path / "new")):
        make = Counted(values)
        assert kept({}, make, folder) == kept({}, make, folder) == values and make.times == 2


def test_the_floor_and_the_halves_are_those_of_no_cache(tmp_path, monkeypatch):
    """Exactly, and kept until an item, a count or the network changes."""
    computed = []

    def keep(key, make):
        def counted():
            computed.append(key["what"])
            return make()

        return kept(key, counted, tmp_path / "kept")

    def floor(others, n=20, keep=keep, seed=0):
        network = Pixels()
        network.setup(IMAGE, 17)
        found = reference(items(100, seed), network, 17, "test", cache=tmp_path / "reference")
        return FeatureMeasures(network, 17, found, others, "train", n, 50, keep=keep).floor()

    def halves(real, n=20, keep=keep):
        return TwoSample(real, Levels(17), n, 30, energy=True, keep=keep).floor()

    others, plain = items(110, 1), {"keep": lambda key, make: make()}
    assert floor(others) == floor(others) == floor(others, **plain)
    assert halves(others) == halves(others) == halves(others, **plain)
    assert computed == ["floor", "halves"]
    changed = TensorItems(others.x.clone())
    changed.x[feature_measures.permuted(110)[0]] = 3
    for other in ((changed,), (others, 21), (others, 20, keep, 2)):
        assert floor(*other) != floor(others)
    for other in ((changed,), (others, 21)):
        assert halves(*other) != halves(others)
    assert computed == ["floor", "halves", *["floor"] * 3, *["halves"] * 2]


@pytest.mark.parametrize(("n", "draws"), [(10, 5), (40, 5), (50, 4), (90, 2), (150, 2), (300, 2), (301, 1), (700, 0)])
def test_the_floor_reads_few_items_more_than_it_needs(tmp_path, monkeypatch, n, draws):
    monkeypatch.setattr(feature_measures, "READ", 200)
    network = Pixels()
    network.setup(IMAGE, 17)
    found = reference(items(100, 0), network, 17, "test", cache=tmp_path)
    assert FeatureMeasures(network, 17, found, items(600, 1), "train", n, 50).draws == draws


def test_known_balls_change_nothing():
    real, fake = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).double() + 1e7 for n in (60, 70))
    assert prdc(real, fake, balls=balls_of(real, 3, 5)) == prdc(real, fake)
