"""diffcli nll likelihood=path and likelihood=energy: through the whole command, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch

from diffcli.data.mixture import Mixture

TINY = ("network=mlp", "network.width=16", "network.blocks=1", "preview.every=0", "trainer.max_steps=20")
LEARNS = (*TINY[:-1], "trainer.max_steps=120", "optim.lr=0.01")
EXACT = ("nll", "network=exact", "data=mixture", "dtype=float64", "out=l")


def read(path, column="log_prob"):
    with path.open() as file:
        return np.array([float(row[column]) for row in csv.DictReader(file)])


def results(path):
    return json.loads((path / "run.json").read_text())["results"]


def test_the_score_alone_gives_the_exact_density(cli, tmp_path):
    done = cli(*EXACT, "likelihood=path", "likelihood.grid=64", "n=40")
    assert done.code == 0, done.err
    data = Mixture()
    truth = data.mixture.log_prob(data.split("test").x[:40]).numpy()
    assert np.abs(read(tmp_path / "l/nll.csv") - truth).max() < 1e-3  # what the noise at t_min changes
    assert read(tmp_path / "l/nll.csv", "path_gap").max() < 1e-5
    found = results(tmp_path / "l")
    assert found["normalised"] and found["grid_points"] == 65**2 and abs(found["log_normaliser_error"]) < 1e-2
    assert found["solver_err_mean"] < 1e-2 and found["path_gap_mean"] < 1e-5
    assert "another path" in done.out
    assert "the density at t = 1e-05, normalised over 4,225 points of a grid" in done.out


def test_without_a_grid_it_says_that_a_constant_is_missing(cli, tmp_path):
    for name, start in (("a", "[0,0]"), ("b", "[1,0.5]")):
        asked = ("likelihood=path", "likelihood.grid=0", f"likelihood.reference={start}", "n=30", f"out={name}")
        done = cli(*EXACT[:-1], *asked)
        assert done.code == 0, done.err
        assert "up to a constant" in done.out and "bits/dim" not in done.out
        assert not results(tmp_path / name)["normalised"]
    a, b = (read(tmp_path / name / "nll.csv") for name in "ab")
    assert np.ptp(a - b) < 1e-4 and abs((a - b).mean()) > 0.1


def test_items_do_not_depend_on_batches(cli, tmp_path):
    asked = ("likelihood=path", "likelihood.grid=16", "dtype=float32", "n=40")
    for name, batch_size in (("a", 64), ("b", 16)):
        assert cli("nll", "network=exact", "data=mixture", *asked, f"out={name}", f"batch_size={batch_size}").code == 0
    assert np.array_equal(read(tmp_path / "a/nll.csv"), read(tmp_path / "b/nll.csv"))


def test_a_model_of_one_level_has_a_density(cli, tmp_path):
    """Which the probability-flow ODE cannot give it; the density integrates to 1 over the plane."""
    assert cli("train", "data=moons", "levels=one", "level.sigma=0.5", "loss=dsm", *LEARNS, "out=t").code == 0
    ckpt = "ckpt=t/checkpoints/last.ckpt"
    done = cli("nll", ckpt, "out=no")
    assert done.code == 2 and "likelihood=path" in done.err and not (tmp_path / "no").exists()
    x = torch.cartesian_prod(*[torch.linspace(-5, 5, 26)] * 2)
    np.save(tmp_path / "x.npy", x.numpy())
    asked = ("likelihood=path", "likelihood.grid=32", "likelihood.bent=false", "out=l")
    done = cli("nll", ckpt, "data=array", "data.file=x.npy", "split=all", *asked)
    assert done.code == 0, done.err
    total = np.exp(read(tmp_path / "l/nll.csv")).sum() * 0.4**2
    assert total == pytest.approx(1, abs=0.05)


def test_an_energy_is_the_density_of_its_score(cli, tmp_path):
    assert cli("train", "data=moons", "prediction=energy", *TINY, "out=t").code == 0
    ckpt = ("ckpt=t/checkpoints/last.ckpt", "n=20", "likelihood.t=0.2")
    for way in ("energy", "path"):
        done = cli("nll", *ckpt, f"likelihood={way}", "likelihood.grid=48", "dtype=float64", f"out={way}")
        assert done.code == 0, done.err
    a, b = (read(tmp_path / way / "nll.csv") for way in ("energy", "path"))
    assert np.abs(a - b).max() < 1e-3
    assert set(read(tmp_path / "energy/nll.csv", "nfe")) == {1.0}


def test_bits_of_an_unnormalised_density_are_not_printed(cli, tmp_path):
    tiny = ("network.channels=8", "network.multipliers=[1]", "network.attention=[]", "preview.every=0")
    assert cli("train", "data=digits", *tiny, "trainer.max_steps=2", "out=t").code == 0
    asked = ("likelihood=path", "likelihood.t=0.5", "likelihood.max_nfe=60", "n=3", "out=l")
    done = cli("nll", "ckpt=t/checkpoints/last.ckpt", *asked)
    assert done.code == 0, done.err
    assert "bits/dim" not in done.out and "bits_per_dim" not in results(tmp_path / "l")
    assert np.isfinite(read(tmp_path / "l/nll.csv")).all()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("likelihood=energy", "prediction=energy"),
        ("likelihood=path likelihood.grid=7", "grid must be even"),
        ("likelihood=path likelihood.t=5", "t must lie in"),
        ("likelihood=path likelihood.tol=0", "tol must lie"),
        ("likelihood=path likelihood.max_nfe=3", "max_nfe must be at least 60"),
        ("likelihood=path likelihood.reference=[1]", "reference must have 2 numbers"),
        ("likelihood=path likelihood.divergence=exact", "divergence"),
    ],
)
def test_refusals(cli, tmp_path, asked, words):
    done = cli(*EXACT, *asked.split())
    assert done.code == 2 and words in done.err and "Traceback" not in done.err
    assert not (tmp_path / "l").exists()
