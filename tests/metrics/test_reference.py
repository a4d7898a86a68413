"""Reference statistics: kept under all that they depend on, remade where damaged, and the floor of real against real."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.data.base import TensorItems
from diffcli.errors import UsageError
from diffcli.metrics.features.module import ModuleFeatures
from diffcli.metrics.features.pixels import Pixels
from diffcli.metrics.features.reference import Reference, cache_folder, few_samples, fingerprint, floor, reference
from diffcli.metrics.features.statistics import Gathered, Moments, Statistics, collect
from diffcli.metrics.frechet import frechet

SHARED = Path(__file__).parents[3] / "shared/data"


def items(n=300, seed=0):
    return TensorItems(torch.randint(0, 17, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte())


class Counted(Pixels.__base__):
    """Pixels that say how often they are read, and have logits."""

    name = "counted"
    reads = 0

    def compute(self, x, levels):
        self.reads += 1
        return x.flatten(1) / 16, x.flatten(1)[:, :3]

    def preprocessing(self):
        return {"range": "0..1"}


@pytest.fixture
def network():
    found = Counted()
    found.setup((1, 4, 4), 17)
    found.reads = 0
    return found


def test_they_are_taken_once_and_come_back_to_the_bit(network, tmp_path):
    first = reference(items(), network, 17, "train", cache=tmp_path, kept=100)
    reads = network.reads
    again = reference(items(), network, 17, "train", cache=tmp_path, kept=100)
    assert reads == network.reads == 3
    assert (first.from_cache, again.from_cache) == (False, True)
    assert first.hash == again.hash
    for name in ("mean", "scatter"):
        assert torch.equal(getattr(first.moments, name), getattr(again.moments, name))
    assert torch.equal(first.gathered.features, again.gathered.features)
    assert torch.equal(first.gathered.index, again.gathered.index)
    assert first.statistics.score.result() == again.statistics.score.result()
    direct = collect([items().x], network, 17, samples=False)
    assert torch.equal(direct.moments.scatter, again.moments.scatter)
    assert torch.equal(direct.gathered.features[again.gathered.index], again.gathered.features)


def test_anything_else_that_they_depend_on_is_another_file(network, tmp_path):
    def taken(data=None, network=network, levels=17, split="train", **how):
        return reference(data or items(), network, levels, split, cache=tmp_path, **how)

    changed = items()
    changed.x[299, 0, 3, 3] += 1 if changed.x[299, 0, 3, 3] < 16 else -1

    other = Counted()
    other.preprocessing = lambda: {"range": "-1..1"}

    class Sharper(Counted):
        def settings(self):
            return {"sharp": True}

    found = [
        taken(),
        taken(items(299)),
        taken(changed),
        taken(split="test"),
        taken(levels=18),
        taken(kept=10),
        taken(splits=5),
        taken(network=other),
        taken(network=Sharper()),
        taken(network=Pixels()),
        taken(TensorItems(items().x.float())),
    ]
    assert len({r.hash for r in found}) == len(found) == len(list(tmp_path.glob("*.npz")))
    assert not any(r.from_cache for r in found)
    assert fingerprint(items()) == fingerprint(TensorItems(items().x, torch.arange(300)))  # labels are not read


def test_a_damaged_file_is_made_anew_with_a_warning(network, tmp_path, capsys):
    first = reference(items(), network, 17, "train", cache=tmp_path)
    whole = first.path.read_bytes()
    middle = len(whole) // 2
    with np.load(first.path) as file:
        arrays = dict(file)

    def other(**changes):
        np.savez(first.path, **(arrays | changes))
        return first.path.read_bytes()

    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damage in (
        whole[:middle],
        b"",
        b"junk",
        flipped,
        other(key=np.array("another protocol")),
        other(n=np.array(7)),
        other(mean=np.full(16, np.nan)),
        other(features=arrays["features"][:5]),
        other(scatter=np.array([None], dtype=object)),
    ):
        first.path.write_bytes(damage)
        reads = network.reads
        again = reference(items(), network, 17, "train", cache=tmp_path)
        said = capsys.readouterr().err
        assert "is damaged (" in said and "pickle" not in said
        assert network.reads > reads
        assert torch.equal(again.moments.scatter, first.moments.scatter)
        assert reference(items(), network, 17, "train", cache=tmp_path).from_cache
        assert capsys.readouterr().err == ""
    assert [p.name for p in tmp_path.iterdir()] == [first.path.name]  # nothing temporary is left


def test_a_cache_that_cannot_be_written_is_a_warning(network, tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    found = reference(items(), network, 17, "train", cache=tmp_path / "file/cache", warn=said.append)
    assert found.path is None
    assert found.moments.n == 300
    assert len(said) == 1
    assert "could not be kept" in said[0]


def test_a_disk_that_is_full_leaves_nothing_that_looks_whole(network, tmp_path, monkeypatch):
    from diffcli import writing

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    said = []
    assert reference(items(), network, 17, "train", cache=tmp_path, warn=said.append).moments.n == 300
    assert "No space left" in said[0]
    assert not list(tmp_path.iterdir())


def test_the_folder_is_the_users_cache(monkeypatch, network, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x/diffcli/reference"
    assert reference(items(), network, 17, "train").path.parent == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/diffcli/reference"


def gaussian_reference(n=4000, d=8):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Reference(Statistics(Moments.of(x), Gathered(x[: n // 2], torch.arange(n // 2)), None), {}, "")


def test_the_floor_is_that_of_fresh_draws_of_the_same_law():
    found = gaussian_reference()
    values, m = floor(found, 200, draws=40)
    assert m == 200
    # the same from new draws against the reference
    g = torch.Generator().manual_seed(1)
    fresh = torch.tensor(
        [frechet(Moments.of(torch.randn(200, 8, generator=g, dtype=torch.float64)), found.moments) for _ in range(40)]
    )
    values = torch.tensor(values)
    error = (values.var() / 40 + fresh.var() / 40).sqrt()
    assert abs(values.mean() - fresh.mean()) < 4 * error
    assert values.mean() > 10 * error
    kept = found.gathered.features  # one half of all, so the draw is all of it, against the other half
    others = found.moments.without(Moments.of(kept))
    assert floor(found, 10**6, draws=1) == (pytest.approx([frechet(Moments.of(kept), others)]), 2000)
    assert floor(found, 10**6, draws=2, seed=3) == floor(found, 10**6, draws=2, seed=3)
    with pytest.raises(UsageError, match="too few"):
        floor(gaussian_reference(2), 5)


def test_few_samples_are_told_with_what_real_ones_give():
    assert few_samples(1000, 64) == ""
    assert "rank 63 at most" in few_samples(64, 64)
    assert few_samples(1000, 64, of_reference=1000) == ""
    assert "180 items of the reference are fewer" in few_samples(1000, 64, of_reference=180)
    assert "of 50 items of the reference in 64 dimensions has rank 49" in few_samples(1000, 64, of_reference=50)
    assert "600 items are fewer" in few_samples(600, 64, of_reference=700)
    told = few_samples(600, 64, [2.0, 3.0], 500)
    assert "fewer than ten times the 64 dimensions" in told
    assert "2.5 at n=500" in told


def tabulated(name, split):
    """Moments of the features of all training or test images, of ../shared/data/weights."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not there")
    with np.load(SHARED / f"weights/fid_stats_{name}.npz") as file:
        mean, cov = (torch.from_numpy(file[f"{part}_{split}"]).double() for part in ("mu", "sigma"))
        n = int(file[f"n_{split}"])
    return Moments(n, mean, cov * (n - 1))


@pytest.mark.parametrize(("name", "d"), [("mnist_small", 2.68), ("fashion_small", 0.93), ("cifar_resnet20", 0.021)])
def test_the_test_sets_are_at_their_tabulated_distance_from_the_training_sets(name, d):
    digits = len(str(d).split(".")[1])
    assert round(frechet(tabulated(name, "test"), tabulated(name, "train")), digits) == d


def test_real_digits_are_at_the_tabulated_floor_and_noise_is_far(monkeypatch):
    train = tabulated("mnist_small", "train")
    monkeypatch.syspath_prepend(str(SHARED))
    sys.modules.pop("feature_nets", None)
    import feature_nets

    with gzip.open(SHARED / "mnist/t10k-images-idx3-ubyte.gz") as file:
        x = torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    network = ModuleFeatures(feature_nets.load("mnist_small"), label="mnist_small")
    network.setup(x.shape[1:], 256)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    drawn = [collect([x[i]], network, 256, samples=False).moments for i in order[:3000].split(500)]
    found = sum(frechet(m, train) for m in drawn) / 6
    # of 5 other draws; one draw has an sd of 4.6 (benchmarks/frechet_floor.py)
    assert found == pytest.approx(21, abs=3 * 4.6 * (1 / 5 + 1 / 6) ** 0.5)
    noise = torch.randint(0, 256, (500, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    assert frechet(collect([noise], network, 256, samples=True).moments, train) == pytest.approx(46_000, rel=0.05)
    sys.modules.pop("feature_nets")
