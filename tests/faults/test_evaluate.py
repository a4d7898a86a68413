"""What is odd about samples or data is refused with the item's name, or measured rightly and said."""

import math

import numpy as np
import pytest

from diffcli.data.digits import Digits
from diffcli.metrics.card import Card

POINTS = np.random.default_rng(0).normal(size=(60, 2))


@pytest.fixture(scope="module")
def images():
    return Digits().split("train").__getitems__(range(60))[0].numpy().astype(np.float64)


@pytest.fixture
def evaluated(cli, tmp_path, monkeypatch):
    """evaluated(x, "n=30", …) -> Result: samples x against the digits, or what data= says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(x, *words):
        np.save(tmp_path / "x.npy", x)
        data = () if any(str(w).startswith("data=") for w in words) else ("data=digits",)
        usual = ("repeats=1", "floor=false", "neighbours=false", "out=e", "overwrite=true")
        return cli("evaluate", *data, "samples=x.npy", *usual, *words)

    return run


def with_item(x, i, value):
    x = x.copy()
    x[i].flat[-1] = value
    return x


def test_samples_that_are_no_samples(evaluated, images, injected, tmp_path):
    grey = images[:, 0]
    cases = {  # x, words, code, what is said
        "NaN in one image": (with_item(images, 47, math.nan), "n=60", 4, "item 47 is not finite (1 of"),
        "inf in one image": (with_item(images, 3, math.inf), "n=60", 4, "item 3 is not finite"),
        "0..1 in the place of levels": (images / 16, "n=60", 2, "values from 0 to 1, the levels of the data are 0..16"),
        "-1..1": (images / 8 - 1, "n=60", 2, "has values from -1 to 1, outside the levels 0..16"),
        "0..255": (images * 15, "n=60", 2, "has values from 0 to"),
        "one alone": (images, "n=1", 2, "n=1 samples are too few"),
        "none": (images[:0], "n=60", 2, "holds 0 samples"),
        "a square too few": (grey[:, :7], "n=60", 2, "shape (7, 8), the data have (1, 8, 8)"),
        "three channels": (np.repeat(images, 3, 1), "n=60", 2, "shape (3, 8, 8), the data have (1, 8, 8)"),
        "words": (grey.astype(str), "n=60", 2, "samples are numbers"),
        "truth values": (grey > 8, "n=60", 2, "samples are numbers"),
        "complex": (grey.astype(complex), "n=60", 2, "samples are numbers"),
        "one number": (np.float64(3), "n=60", 2, "samples are numbers"),
    }
    for name, (x, words, code, said) in cases.items():
        done = evaluated(x, words)
        assert (done.code, said in done.err, done.err.count("error")) == (code, True, 1), (name, done.err)
        assert not (tmp_path / "e/card.json").exists(), name
    (tmp_path / "empty.npy").touch()
    done = evaluated(images, "samples=empty.npy")
    assert done.code == 2 and "no .npy or .npz file" in done.err
    n = len(cases) + 1
    injected("samples that are none (NaN, wrong range, shape, type)", "named and refused", n=n, survived=n)


def moments(x):
    x = x.reshape(len(x), -1)
    return x.mean(0), np.cov(x.T)


def test_samples_that_are_one_and_the_same(evaluated, images, injected, tmp_path, monkeypatch):
    """Their covariance is 0: the Fréchet distance is still `|m1 - m2|^2 + tr S2`."""
    test = Digits().split("test").__getitems__(range(len(Digits().split("test"))))[0].numpy().astype(np.float64)
    for x in (np.repeat(images[:1], 60, 0), np.zeros_like(images)):
        done = evaluated(x, "n=60")
        assert done.code == 0, done.err
        assert "59 of the first 60 samples are copies of others" in done.out
        card = Card.read(tmp_path / "e")
        found = next(f for f in card.figures if "echet" in f.label)
        (m1, s1), (m2, s2) = moments(x / 16), moments(test / 16)
        assert not s1.any()
        expected = ((m1 - m2) ** 2).sum() + np.trace(s2)
        assert found.mean == pytest.approx(expected, rel=1e-4)
        assert all(math.isfinite(v) for f in card.figures for v in f.values)
    done = evaluated(images, "n=60")
    assert done.code == 0 and "copies" not in done.out
    done = evaluated(np.repeat(POINTS[:1], 60, 0), "n=60", "data=mixture")
    assert done.code == 0 and "copies of others" in done.out and "KL(samples ‖ density), nats is left out" in done.out
    injected("samples that are all the same", "right figures, and a warning", n=3, survived=3)


def test_fewer_samples_than_features_and_constant_pixels(evaluated, images, injected, tmp_path):
    for n, words in ((2, "n=2"), (9, "n=9")):
        done = evaluated(images, words)
        assert done.code == 0, done.err
        assert f"the covariance of {n} items in 64 dimensions has rank {n - 1} at most" in done.out
        assert all(math.isfinite(v) for f in Card.read(tmp_path / "e").figures for v in f.values)
    assert "precision is left out" in evaluated(images, "n=3").out
    flat = images.copy()
    flat[:, :, :4] = 0
    done = evaluated(flat, "n=60")
    assert done.code == 0, done.err
    assert all(math.isfinite(v) for f in Card.read(tmp_path / "e").figures for v in f.values)
    injected("fewer samples than features, constant pixels", "figures, and a warning of their bias", n=4, survived=4)


def test_data_of_one_item(evaluated, cli, injected, tmp_path):
    np.save(tmp_path / "one.npy", POINTS[:1])
    np.save(tmp_path / "same.npy", np.repeat(POINTS[:1], 60, 0))
    np.save(tmp_path / "nan.npy", with_item(POINTS, 7, math.nan))
    for file, said in (("one", "1 items of data leave 0"), ("same", "all equal"), ("nan", "item 7 is not finite")):
        done = evaluated(POINTS, "n=60", "data=array", f"data.file={file}.npy")
        assert done.code in (2, 4) and said in done.err, done.err
        assert done.err.count("error") == 1 and not (tmp_path / "e/card.json").exists()
    exact = ("network=exact", "data=mixture")
    done = cli("nll", *exact, "n=1", "out=one")
    assert done.code == 0 and "one item: no standard error" in done.out and "nan" not in done.out
    injected("data of one item, of equal items, with a NaN", "refused, the item named", n=3, survived=3)
