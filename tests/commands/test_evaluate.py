"""diffcli evaluate: good samples score what real items score, bad ones worse; a card says how and by how much."""

import json

import numpy as np
import pytest

from diffcli.data.digits import Digits
from diffcli.metrics.card import Card

EXACT = ("network=exact", "data=mixture")
FILES = {"run.json", "card.json", "card.md", "card.png"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def card_of(cli, tmp_path, name, *asked):
    done = cli("evaluate", f"out={name}", *asked)
    assert done.code == 0, done.err
    more = set() if "neighbours=false" in asked else {"neighbours.png"}
    assert {p.name for p in (tmp_path / name).iterdir()} == FILES | more
    return Card.read(tmp_path / name), done.out


def z(card, name):
    """How many of the floor's sd, of both in quadrature, the mean is above the floor."""
    f = card.figure(name)
    return (f.mean - f.floor_mean) / (f.floor_sd**2 + f.sd**2 / len(f.values)) ** 0.5


def test_exact_samples_score_as_real_items(cli, tmp_path):
    """And a known error of the score is told apart."""
    words = (*EXACT, "n=800", "repeats=2", "sampler=dpmpp_2m")
    good, out = card_of(cli, tmp_path, "good", *words, "steps=60")
    points = [
        "sliced_wasserstein",
        "mmd2",
        "energy_distance",
        "kl",
        "kl_excess",
        "covered_modes",
        "mode_weights",
        "between_modes",
    ]
    assert [f.name for f in good.figures] == points
    for f in good.figures:
        assert len(f.values) == 2
        assert abs(z(good, f.name)) < 4 if f.floor_sd else f.mean == f.floor_mean, f
        assert f.label in out
    assert good.memorisation["memorised"] is False
    bad, _ = card_of(cli, tmp_path, "bad", *words, "steps=10", "network.error=0.5", "neighbours=false")
    for name in ("sliced_wasserstein", "mmd2", "energy_distance", "kl"):
        assert bad.figure(name).mean > good.figure(name).mean
        assert z(bad, name) > 4, name


def test_it_measures_the_samples_that_sample_draws_in_turn_whatever_the_batches(cli, tmp_path):
    words = ("n=100", "repeats=2", "data=mixture", "neighbours=false", "compared=90")
    walk = ("network=exact", "steps=3", "seed=4")
    one, _ = card_of(cli, tmp_path, "one", *words, *walk, "batch_size=16")
    other, _ = card_of(cli, tmp_path, "other", *words, *walk, "batch_size=200")
    assert one.figures == other.figures
    done = cli("sample", *EXACT, *walk[1:], "n=200", "batch_size=64", "out=drawn")
    assert done.code == 0, done.err
    given, _ = card_of(cli, tmp_path, "given", *words, "samples=drawn/samples.npy")
    assert given.protocol == one.protocol
    for a, b in zip(given.figures, one.figures, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-12)
        assert a.floor == b.floor
    assert one.figures[0].values[0] != one.figures[0].values[1]
    record = json.loads((tmp_path / "one/run.json").read_text())
    assert record["nfe"] == one.draw["nfe"] == {"mean": 6.0, "min": 6, "max": 6}
    assert (record["steps"], one.draw["sampler"]["name"], one.draw["repeats"]) == (3, "DPM2", 2)


def test_training_items_are_found_out_and_held_out_items_are_not(cli, tmp_path):
    """Images, given as another program writes them: NHWC, 8 bits."""
    data = Digits()
    for split, memorised in (("train", True), ("test", False)):
        x = data.split(split).__getitems__(range(150))[0].numpy().transpose(0, 2, 3, 1)
        np.savez(tmp_path / f"{split}.npz", x)
        words = ("data=digits", f"samples={split}.npz", "n=75", "repeats=2", "split=val")
        card, out = card_of(cli, tmp_path, f"on_{split}", *words)
        assert card.memorisation["memorised"] is memorised
        assert card.memorisation["verdict"] in out
    images = ["frechet", "kid", "precision", "recall", "density", "coverage", "sliced_wasserstein", "mmd2"]
    assert [f.name for f in card.figures] == images
    assert "FID" not in out
    frechet = card.figures[0]
    assert frechet.label == "Frechet distance (pixels)"
    assert "ten times the 64 dimensions" in frechet.warning
    assert frechet.warning in out
    assert len(frechet.floor) == 5
    for name in images:
        assert abs(z(card, name)) < 4, name


def test_a_kernel_density_gives_the_training_items_back_and_is_flagged(cli, tmp_path):
    done = cli("train", "network=kde", "sde=ve", "data=moons", "data.n=300", "preview.every=0", "out=kde")
    assert done.code == 0, done.err
    card, out = card_of(cli, tmp_path, "e", "ckpt=kde/checkpoints/last.ckpt", "n=100", "repeats=1", "last=denoise")
    assert card.memorisation["memorised"] is True
    assert "memorised" in out
    assert all(f.sd is None for f in card.figures)
    assert card.title == "kde/last.ckpt (ema) on Points moons test"


def test_what_is_not_as_usual_is_said(cli, tmp_path):
    card, out = card_of(
        cli, tmp_path, "train", *EXACT, "split=train", "steps=5", "n=60", "repeats=1", "neighbours=false"
    )
    assert not card.protocol["data"]["held_out"]
    assert "not held out" in out
    assert "KL(samples ‖ density), nats is left out: the density of 60 samples cannot be estimated" in out
    assert card.memorisation == {}
    np.save(tmp_path / "x.npy", np.full((20, 1, 8, 8), 3))
    card, out = card_of(
        cli, tmp_path, "flat", "data=digits", "samples=x.npy", "n=5", "repeats=1", "floor=false", "neighbours=false"
    )
    assert "recall is left out" in out
    assert card.figures[0].floor == []


def test_dry_run_starts_nothing(cli, tmp_path):
    done = cli("evaluate", *EXACT, "dry_run=true")
    assert (done.code, list(tmp_path.iterdir())) == (0, [])
    assert "3 × 1000 samples" in done.out


X = np.arange(64 * 30).reshape(30, 8, 8) % 17


@pytest.mark.parametrize(
    "x, words, code, said",
    [
        (X / 16, (), 2, "values from 0 to 1, the levels of the data are 0..16"),
        (X / 8 - 1, (), 2, "outside the levels 0..16"),
        (np.where(X == 16, np.nan, X), (), 4, "not finite"),
        (X[:, :4], (), 2, "shape (4, 8), the data have (1, 8, 8)"),
        (X.astype(str), (), 2, "samples are numbers"),
        (X[:, 0, 0], (), 2, "samples are numbers"),
        (X[:1], (), 2, "try: a file of more"),
        (X, ("n=20",), 2, "holds 30 samples, n=20 repeats=2 takes 40"),
        (X, ("steps=3",), 2, "says nothing about them"),
        (X, ("features=inception",), 2, "weights"),
        (X, ("features.foo=3",), 2, "foo"),
        (X, ("samples=gone.npy",), 2, "No such file"),
        (X, ("samples=bad.npy",), 2, "no .npy or .npz file"),
        (X, ("repeats=0",), 2, "at least 1"),
        (X, ("n=1",), 2, "at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_sentence(cli, tmp_path, x, words, code, said):
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "bad.npy").write_text("no numbers")
    done = cli("evaluate", "data=digits", "samples=x.npy", "n=10", "repeats=2", "out=e", *words)
    assert done.code == code, done.err
    assert said in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("error") == 1
    assert (tmp_path / "e").exists() == (code == 4)


def test_dark_samples_in_the_first_batch_are_not_taken_for_ones_in_0_to_1(cli, tmp_path):
    np.save(tmp_path / "x.npy", np.where(np.arange(30)[:, None, None] == 0, 0.0, X))
    words = ("data=digits", "samples=x.npy", "n=10", "repeats=2", "batch_size=1", "floor=false", "neighbours=false")
    done = cli("evaluate", *words, "out=e")
    assert done.code == 0, done.err


def test_a_model_of_digits_does_not_go_with_another_shape(cli, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 28, 28)))
    tiny = ("network=mlp", "network.width=8", "network.blocks=1", "trainer.max_steps=1", "preview.every=0")
    done = cli("train", "data=digits", *tiny, "out=run", "batch_size=8")
    assert done.code == 0, done.err
    done = cli("evaluate", "ckpt=run/checkpoints/last.ckpt", "data=array", "data.file=x.npy", "out=e")
    assert (done.code, (tmp_path / "e").exists()) == (2, False)
    assert "the data has items of shape (28, 28), the model takes (1, 8, 8)" in done.err
