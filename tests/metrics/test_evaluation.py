"""An evaluation's stream: repeats are the items in turn, whatever the batches, and memory does not grow with them."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import torch

from diffcli.data.base import Items, TensorItems
from diffcli.data.mixture import Mixture
from diffcli.data.transform import Identity, Levels
from diffcli.diffusion.exact import GaussianMixture
from diffcli.errors import NumericalError
from diffcli.metrics import measures
from diffcli.metrics.evaluation import evaluate, in_repeats
from diffcli.metrics.feature_measures import FeatureMeasures
from diffcli.metrics.features.base import FeatureNetwork
from diffcli.metrics.features.pixels import Pixels
from diffcli.metrics.features.reference import reference
from diffcli.metrics.features.statistics import Moments
from diffcli.metrics.frechet import frechet
from diffcli.metrics.measures import About, KnownDensity, Measure, TwoSample, fitting, permuted, some
from diffcli.metrics.taken import Taken

IMAGE = (1, 4, 4)


def images(n, seed, shift=0.0):
    x = torch.randn(n, *IMAGE, generator=torch.Generator().manual_seed(seed)) * 3 + 8 + shift
    return x


def items(n, seed):
    return TensorItems(images(n, seed).round().clamp(0, 16).to(torch.uint8))


def features(tmp_path, n, others=None, kept=50):
    network = Pixels()
    network.setup(IMAGE, 17)
    found = reference(items(400, 0), network, 17, "test", cache=tmp_path)
    return FeatureMeasures(network, 17, found, others, "train", n, kept)


def in_batches(x, *sizes):
    """x in batches of these sizes over and over, with the item's number as its evaluations."""
    at = 0
    while at < len(x):
        for size in sizes:
            part = x[at : at + size]
            if len(part):
                yield part.numpy(), np.arange(at, at + len(part))
            at += size


@pytest.mark.parametrize("sizes", [(1,), (7,), (16, 3), (30,), (100,)])
def test_a_repeat_is_n_items_in_turn(sizes):
    x = torch.arange(30.0)[:, None]
    pieces = list(in_repeats(in_batches(x, *sizes), 10))
    assert np.concatenate([p for p, _ in pieces])[:, 0].tolist() == list(range(30))
    assert all(len({int(v) // 10 for v in p[:, 0]}) == 1 for p, _ in pieces)
    assert all((p[:, 0] == nfe).all() for p, nfe in pieces)


class Sum(Measure):
    """The sum of the first items and their number."""

    about = {"sum": About("sum", "lower"), "number": About("number", "lower")}
    what_floor = "one"

    def __call__(self, taken):
        return {"sum": taken.first.sum().item(), "number": float(taken.n)}

    def floor(self):
        return {"sum": [1.0]}


def test_each_repeat_is_measured_apart():
    x = torch.arange(30.0)[:, None]
    found = evaluate(in_batches(x, 7), 10, [Sum()], lambda: Taken(Identity(), 1000))
    total, number = found.figures
    assert total.values == [45.0, 145.0, 245.0]
    assert (total.mean, total.sd, total.floor) == (145.0, 100.0, [1.0])
    assert number.values == [10.0] * 3
    assert found.first.first.flatten().tolist() == list(range(10))
    assert found.nfe.summary() == {"mean": 14.5, "min": 0, "max": 29}
    # what is compared is the first of each repeat
    found = evaluate(in_batches(x, 7), 10, [Sum()], lambda: Taken(Identity(), 3))
    assert found.figures[0].values == [3.0, 33.0, 63.0]


def test_figures_do_not_depend_on_the_batches(tmp_path):
    n, x = 150, images(300, 1)
    results = []
    for sizes in ((300,), (1,), (64, 17)):
        measure = features(tmp_path, n)
        two = TwoSample(items(400, 0), Levels(17), n, 60, energy=True)
        found = evaluate(
            in_batches(x, *sizes), n, [measure, two], lambda m=measure: Taken(Levels(17), 60, m.collector())
        )
        results.append({f.name: f.values for f in found.figures})
    assert len(results[0]) == 9
    assert results[0] == results[1] == results[2]


def test_a_repeat_is_measured_as_it_would_be_alone_and_as_saved(tmp_path):
    """Rounded and clipped to the levels; the Fréchet distance is that of the moments of those items."""
    n, x = 150, images(300, 1)
    measure = features(tmp_path, n)
    found = evaluate(in_batches(x, 64), n, [measure], lambda: Taken(Levels(17), 60, measure.collector()))
    saved = x.round().clamp(0, 16).flatten(1) / 16
    real = items(400, 0).x.flatten(1) / 16
    expected = [frechet(Moments.of(part), Moments.of(real)) for part in saved.double().split(n)]
    assert found.figures[0].values == pytest.approx(expected, rel=1e-6)


def test_the_floor_is_of_disjoint_items_of_the_other_split_at_the_same_count(tmp_path):
    others = items(330, 5)
    measure = features(tmp_path, 100, others)
    floor = measure.floor()["frechet"]
    assert len(floor) == 3
    order, real = permuted(330), Moments.of(items(400, 0).x.flatten(1) / 16)
    parts = [others.x[order[100 * r : 100 * r + 100]].flatten(1) / 16 for r in range(3)]
    assert floor == pytest.approx([frechet(Moments.of(p.double()), real) for p in parts], rel=1e-6)
    assert "100 images of the train split" in measure.what_floor
    assert features(tmp_path, 331, others).floor() == {}
    assert features(tmp_path, 10, None).floor() == {}


def test_real_items_in_the_place_of_samples_are_within_the_floor_and_shifted_ones_are_not(tmp_path):
    """4 sd of what floor and repeats scatter; one level of a shift is seen by each measure that can see it."""
    n = 150
    measure = features(tmp_path, n, items(900, 5), kept=1000)
    two = TwoSample(items(400, 0), Levels(17), n, 100, energy=True)
    for shift in (0.0, 2.0):
        measure.left_out.clear()
        found = evaluate(
            in_batches(images(3 * n, 9, shift), 64),
            n,
            [measure, two],
            lambda: Taken(Levels(17), 100, measure.collector()),
        )
        assert not found.left_out
        for f in found.figures:
            z = (f.mean - f.floor_mean) / (f.floor_sd**2 + f.sd**2 / 3) ** 0.5
            worse = z if f.better == "lower" else -z
            if shift == 0:
                assert abs(z) < 4, f
            elif f.name != "recall":  # which asks whether samples surround the data
                assert worse > 4, f


def test_too_few_for_the_features_is_said_beside_the_figure(tmp_path):
    for n, said in ((16, "rank 15"), (100, "fewer than ten times"), (161, "")):
        measure = features(tmp_path, n, items(400, 5))
        found = evaluate(
            in_batches(images(n, 1), 64), n, [measure], lambda m=measure: Taken(Levels(17), 9, m.collector())
        )
        assert said in found.figures[0].warning
        assert bool(said) == bool(found.figures[0].warning)


class Sure(FeatureNetwork):
    """Pixels with the logits of 3 classes."""

    name = "sure"

    def compute(self, x, levels):
        return x.flatten(1) / 16, x.flatten(1)[:, :3]

    def preprocessing(self):
        return {}


def test_a_small_reference_and_few_items_a_class_are_said_beside_their_figures(tmp_path):
    network = Sure()
    network.setup(IMAGE, 17)
    for count, n, biased in (
        (100, 200, {"frechet": "100 items of the reference", "inception_score": "20 items"}),
        (200, 300, {}),
    ):
        found = reference(items(count, 0), network, 17, "test", cache=tmp_path)
        measure = FeatureMeasures(network, 17, found, None, "", n, 50)
        card = evaluate(
            in_batches(images(n, 1), 64), n, [measure], lambda m=measure: Taken(Levels(17), 9, m.collector())
        )
        warnings = {f.name: f.warning for f in card.figures if f.warning}
        assert warnings.keys() == biased.keys()
        assert all(biased[name] in warnings[name] for name in biased)
        assert measure.protocol()["features"]["inception_score"] == "10 splits"


def test_what_cannot_be_measured_is_left_out_with_a_sentence(tmp_path):
    measure = features(tmp_path, 4)
    found = evaluate(in_batches(images(4, 1), 4), 4, [measure], lambda: Taken(Levels(17), 9, measure.collector()))
    assert [f.name for f in found.figures] == ["frechet", "kid"]
    assert set(found.left_out) == {"precision", "recall", "density", "coverage"}
    assert "at least 6" in found.left_out["recall"]


def test_a_known_density_tells_copies_and_missing_modes():
    data = Mixture(n=10)
    x = data.mixture.sample(400, torch.Generator().manual_seed(0))[0]
    cases = {"copies": x[:1].repeat(400, 1), "one mode": x[x[:, 0] > 1][:100].repeat(4, 1) + 1e-3 * x}
    for name, samples in cases.items():
        measure = KnownDensity(data.mixture, 400, 400)
        found = evaluate(in_batches(samples, 100), 400, [measure], lambda: Taken(Identity(), 400))
        covered = next(f for f in found.figures if f.name == "covered_modes")
        assert covered.mean < covered.floor_mean == 4
        assert "almost no samples" in covered.warning
        assert ("kl" in found.left_out) == (name == "copies")


def test_the_excess_of_kl_is_free_of_the_bias_of_its_estimator():
    """In 16 dimensions the KL of 200 draws of the density itself is off by many sd; above that of exact draws it is 0.

    A shift by s of one unit normal is `s²/2` nats."""
    mixture = GaussianMixture([1.0], torch.zeros(1, 16), torch.eye(16)[None])
    for shift, nats in ((0.0, 0.0), (2.0, 2.0)):
        x = torch.randn(600, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x[:, 0] += shift
        measure = KnownDensity(mixture, 300, 200)
        found = evaluate(in_batches(x[:600], 100), 300, [measure], lambda: Taken(Identity(), 200))
        kl, excess = found.figures[:2]
        assert [kl.name, excess.name] == ["kl", "kl_excess"]
        error = excess.floor_sd * (1 / 2 + 1 / 8) ** 0.5
        assert abs(kl.mean - nats) > 7 * error
        assert abs(excess.mean - nats) < 3 * error
        assert excess.floor_mean == pytest.approx(0, abs=1e-12)
    assert measure.protocol() == {"compared_with_density": 200}
    assert "the first 200 of each repeat alone" in excess.what_floor
    assert "alone" not in KnownDensity(mixture, 200, 200).what_floor
    two = [TwoSample(items(400, 0), Levels(17), 90, most, energy=False).what_floor for most in (60, 90)]
    assert ["the first 60 of each" in two[0], "alone" in two[1]] == [True, False]


def test_a_sample_that_is_not_finite_is_named():
    x = torch.zeros(20, 2)
    x[13, 1] = torch.nan
    with pytest.raises(NumericalError, match="sample 3 is not finite"):
        evaluate(in_batches(x, 4), 10, [Sum()], lambda: Taken(Identity(), 5))


def test_values_that_saving_clips_are_counted():
    """By more than a tenth of the range: -1.6 below and 17.6 above for 17 levels."""
    taken = Taken(Levels(17), 2)
    taken.add(torch.tensor([[-1.7, -1.5, 0.0, 17.5], [17.7, 30.0, 1.0, 2.0]]))
    assert (taken.off_range, taken.values) == (3, 8)
    assert taken.first.tolist() == [[0.0, 0.0, 0.0, 16.0], [16.0, 16.0, 1.0, 2.0]]


def drawn(n, last=lambda: None):
    """n images in batches of 100; `last` is called before the last one."""
    for i in range(n // 100):
        if i == n // 100 - 1:
            last()
        yield torch.randn(100, *IMAGE).mul_(3).add_(8).numpy(), np.ones(100, int)


def test_memory_does_not_grow_with_n(tmp_path):
    """Neither the tensors that are alive when the last batch of a repeat comes, nor what Python and NumPy hold at most."""
    measure = features(tmp_path, 500, kept=100)
    measures = [measure, TwoSample(items(400, 0), Levels(17), 500, 100, energy=False)]
    alive, peak, counts = [], [], (500, 500, 5000)  # the first fills caches

    def look():
        storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
        alive.append(sum({s.data_ptr(): s.nbytes() for s in storages}.values()))

    for n in counts:
        evaluate(drawn(n, look), n, measures, lambda: Taken(Levels(17), 100, measure.collector()))
        tracemalloc.start()
        evaluate(drawn(n), n, measures, lambda: Taken(Levels(17), 100, measure.collector()))
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole = 4500 * 16 * 4  # bytes of the samples that one has more than the other
    assert alive[2] - alive[1] < whole / 20
    assert peak[2] - peak[1] < whole / 20


def test_of_the_first_repeat_no_features_are_held_beside_those_of_the_next(tmp_path):
    measure, held = features(tmp_path, 100, kept=100), []

    class Watched(Taken):
        def __init__(self):
            held.append([ref() for ref in alive])
            super().__init__(Levels(17), 10, measure.collector())
            alive.append(weakref.ref(self.collector))

    alive = []
    evaluate(in_batches(images(300, 1), 64), 100, [measure], Watched)
    assert held == [[], [None], [None, None]]


def test_of_large_images_fewer_are_held(monkeypatch):
    assert fitting(2000, (3, 64, 64)) == 2000
    assert fitting(2000, (3, 256, 256)) * 2 * 3 * 256**2 <= measures.HELD
    assert fitting(2000, (3, 9999, 9999)) == 2
    monkeypatch.setattr(measures, "HELD", 16 * 50)
    asked = []

    class Watched(Items):
        def __len__(self):
            return 300

        def __getitems__(self, indices):
            asked.append(len(indices))
            return items(300, 0).__getitems__(indices)

    assert TwoSample(Watched(), Levels(17), 100, fitting(60, IMAGE), energy=False).ruler.m == 25
    assert max(asked) == 50


def test_a_choice_of_items_is_the_same_each_time_and_has_none_twice():
    data = items(50, 0)
    numbered = TensorItems(torch.arange(50.0)[:, None])
    assert torch.equal(some(data, 20), some(data, 20))
    assert len(some(numbered, 20).unique()) == 20
    assert sorted(some(numbered, 99).flatten().tolist()) == list(range(50))
    assert some(numbered, 50).flatten().tolist() != list(range(50))
