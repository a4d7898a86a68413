"""diffcli explain: its files and figures, with and without a model; the warnings of train."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data.digits import Digits
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.paths import conf_dir

ALWAYS = {"run.json", "explain.json", "coefficients.csv", "clocks.csv", "coefficients.png"}
SDES = sorted(path.stem for path in (conf_dir() / "sde").glob("*.yaml") if path.stem != "one")
SMALL = ("data=mixture", "data.name=sixteen", "data.n=100")
TINY = ("network.width=8", "batch_size=8", "preview.every=0", "dry_run=true")


def explained(cli, tmp_path, *words, files=frozenset()):
    done = cli("explain", "out=it", *words)
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "it").iterdir()} == ALWAYS | files
    assert all((tmp_path / "it" / name).stat().st_size > 5000 for name in files)
    return json.loads((tmp_path / "it" / "explain.json").read_text()), done


def test_without_a_model_or_a_word(cli, tmp_path):
    """VP on a mixture: the printed coefficients are the SDE's own."""
    done = cli("explain", "out=it")
    assert done.code == 0 and done.err == ""
    assert {p.name for p in (tmp_path / "it").iterdir()} == ALWAYS | {"forward.png", "scores.png"}
    sde = VP(Linear())
    lines = done.out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == ["t", "alpha", "sigma", "f", "g", "lam"])
    for line in lines[head + 1 : head + 12]:
        t, *values = map(float, line.split())
        t = torch.tensor(t, dtype=torch.float64)
        own = (sde.alpha(t), sde.sigma(t), sde.f(t), sde.g2(t).sqrt(), sde.lam(t))
        assert values == pytest.approx([v.item() for v in own], rel=2e-3, abs=1e-3)
    with (tmp_path / "it" / "coefficients.csv").open() as file:
        rows = list(csv.DictReader(file))
    t = torch.tensor([float(row["t"]) for row in rows], dtype=torch.float64)
    assert [float(row["sigma"]) for row in rows] == sde.sigma(t).tolist()
    assert json.loads((tmp_path / "it" / "run.json").read_text())["command"] == "explain"
    assert "scores.png" in done.out and "KL to N(0, 1² I)" in done.out


@pytest.mark.parametrize("sde", SDES)
def test_every_sde(cli, tmp_path, sde):
    found, done = explained(cli, tmp_path, f"sde={sde}", *SMALL, files={"forward.png"})
    assert done.err == ""
    assert all(found["noise_sequence"][which]["verdict"] == "good" for which in ("near_data", "near_prior"))
    assert len(found["clocks"]["edm_sigma"]) == len(found["coefficients"]["t"])


@pytest.mark.parametrize("words", [("sde=vp", "schedule=ddpm"), ("sde=ve", "schedule=ncsn")], ids=lambda w: w[1])
def test_a_chain_shows_its_own_levels(cli, tmp_path, words):
    found, done = explained(cli, tmp_path, *words, *SMALL, "grid=levels", files={"forward.png"})
    levels = found["noise_sequence"]["neighbours"]
    (grid,) = levels.keys() - {"training levels"}
    assert levels[grid] == levels["training levels"]  # grid=levels walks them all
    assert levels["training levels"]["levels"] == round(found["clocks"]["own_i"][-1])
    assert "its own" in done.out and "training levels" in done.out


def test_images(cli, tmp_path):
    found, _ = explained(cli, tmp_path, "data=digits", "n=300", files={"forward.png"})
    scale = found["noise_sequence"]["near_data"]["scale"]
    assert scale == 2 / Digits().transform.levels
    assert found["data"].startswith("300 of 1,437 training items")
    a = np.asarray(Image.open(tmp_path / "it" / "forward.png").convert("L"), dtype=float)
    assert a.std() > 50


def test_one_dimension(cli, tmp_path):
    explained(cli, tmp_path, "data=mixture", "data.name=line", "sde=ve", files={"marginals.png"})


def test_beside_a_model(cli, tmp_path):
    """The learned field with its error, and the energy; the same folder again, of another process."""
    words = ("data=mixture", "data.n=200", "prediction=energy", "network.width=8", "network.blocks=1", "batch_size=8")
    assert cli("train", *words, "trainer.max_steps=2", "preview.every=0", "out=run", "sde=ve").code == 0
    found, done = explained(
        cli, tmp_path, "ckpt=run/checkpoints/last.ckpt", files={"forward.png", "scores.png", "energy.png"}
    )
    assert found["process"].startswith("VE") and found["model"].endswith("last.ckpt")
    assert len(found["score_errors"]) == 4
    assert all(0.5 < row["error"] < 2 for row in found["score_errors"])  # two steps have taught it nothing
    assert done.out.count("score error") == 4
    again = cli("explain", "out=it")
    assert again.code == 2 and "already holds a run" in again.err
    again = cli("explain", "out=it", "overwrite=true", "sde=vp", *SMALL)
    assert again.code == 0
    assert {p.name for p in (tmp_path / "it").iterdir()} == ALWAYS | {
        "forward.png"
    }  # nothing is left of the one before


def test_a_measured_sigma_max(cli, tmp_path):
    found, done = explained(cli, tmp_path, "sde=ve", "schedule.sigma_max=auto", *SMALL, files={"forward.png"})
    (largest,) = [
        float(line.split()[2].rstrip(",")) for line in done.out.splitlines() if "schedule.sigma_max =" in line
    ]
    assert found["coefficients"]["sigma"][-1] == pytest.approx(largest, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sde=one", "no process"),
        ("sde=ou schedule=linear", "clock of its own"),
        ("prediction=eps", "ckpt=PATH"),
        ("sampler=heun", "sampler"),
        ("n=0", "n must be at least 1"),
        ("n=null", "n must be a whole number"),
        ("steps=0", "steps must be at least 1"),
        ("grid=levels", "schedule with levels"),
        ("network=mlp", "no trained weights"),
        ("ckpt=nowhere.ckpt", "no checkpoint nowhere.ckpt"),
        ("sde.t_min=2", "t_min"),
        ("data=mnist data.root=nowhere", "nowhere"),
    ],
)
def test_what_is_refused(cli, tmp_path, words, sentence):
    done = cli("explain", *words.split())
    assert done.code == 2
    assert done.err.startswith("error: ") and sentence in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_dry_run(cli, tmp_path):
    done = cli("explain", "dry_run=true")
    assert done.code == 0 and "would explain VP" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sde", "data"), [("vp", "digits"), ("ve", "moons")])
def test_train_does_not_warn_of_its_defaults(cli, sde, data):
    """tests/explain looks at every SDE."""
    done = cli("train", f"sde={sde}", f"data={data}", "network=mlp", *TINY)
    assert done.code == 0, done.err
    assert "warning:" not in done.err


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ("sde=vp sde.t_min=0.2", ["p_0 is far from the data"]),
        ("sde=ve schedule.sigma_max=3", ["p_1 is far from the prior"]),
        ("sde=ve schedule.sigma_max=3 schedule.sigma_min=0.5", ["p_0 is far", "p_1 is far"]),
    ],
)
def test_train_warns_of_a_bad_noise_sequence(cli, words, sentences):
    done = cli("train", *words.split(), "data=moons", *TINY)
    assert done.code == 0
    found = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(found) == len(sentences)
    assert all(s in line for s, line in zip(sentences, found, strict=True))
