"""condition=label|vector from the command line: training, samples by name, likelihoods of each item's own label."""

import copy
import csv
import json
import math

import numpy as np
import pytest
import torch

from diffcli import checkpoint
from diffcli.data.mixture import Mixture
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP

NET = ("network=mlp", "network.width=16", "network.blocks=1")
TINY = ("trainer.max_steps=4", "batch_size=32", "preview.every=0", *NET)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


KEPT = {}


@pytest.fixture
def moons(cli, tmp_path):
    """A model that knows labels, of random weights."""
    path = tmp_path / "run/checkpoints/last.ckpt"
    if not KEPT:
        done = cli("train", "condition=label", "data=moons", *TINY, "out=run", "drop=0.3")
        assert done.code == 0, done.err
        content, generator = checkpoint.read(path), torch.Generator().manual_seed(0)
        for name, value in content["ema"].items():
            content["ema"][name] = content["state_dict"][name] = torch.randn(value.shape, generator=generator) / 4
        KEPT.update(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(copy.deepcopy(KEPT), path)
    return "ckpt=run/checkpoints/last.ckpt"


def test_samples_by_name_number_list_all_and_none(cli, moons, tmp_path):
    def sampled(*words):
        done = cli("sample", moons, "n=5", "steps=3", "out=s", "overwrite=true", *words)
        assert done.code == 0, done.err
        told = tmp_path / "s/labels.csv"
        return np.load(tmp_path / "s/samples.npy"), rows(told) if told.exists() else None

    upper, told = sampled("label=upper")
    assert [row["label"] for row in told] == ["0"] * 5
    both, told = sampled("label=all")
    assert [row["name"] for row in told] == ["upper", "lower", "upper", "lower", "upper"]
    assert json.loads((tmp_path / "s/run.json").read_text())["results"]["labels"] == {"upper": 3, "lower": 2}
    lower, _ = sampled("label=1")
    assert np.array_equal(both[::2], upper[::2])
    assert np.array_equal(both[1::2], lower[1::2])
    assert np.abs(upper - lower).min() > 0
    nothing, told = sampled()
    assert told is None
    mixed, told = sampled("label=[LOWER,none]")
    assert [row["label"] for row in told] == ["1", "-1", "1", "-1", "1"]
    assert np.array_equal(mixed[::2], lower[::2])
    assert np.array_equal(mixed[1::2], nothing[1::2])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["label=uper"], "did you mean 'upper'"),
        (["label=2"], "no label '2'"),
        (["label=-1"], "no label '-1'"),
        (["label=true"], "no label 'True'"),
        (["label=1.0"], "no label '1.0'"),
        (["label=[upper,null]"], "no label 'null'"),
        (["label=[]"], "names no label"),
        (["vector=[1]"], "takes no vector"),
    ],
    ids=str,
)
def test_labels_that_are_not_there(cli, moons, words, sentence):
    refusal = cli("sample", moons, *words, "dry_run=true")
    assert refusal.code == 2
    assert sentence in refusal.err
    assert "try: " in refusal.err


def test_nothing_is_refused_where_it_was_never_said_and_older_checkpoints_have_no_condition(cli, moons, tmp_path):
    path = tmp_path / "run/checkpoints/last.ckpt"
    content = checkpoint.read(path)
    assert content["config"]["class_names"] == ["upper", "lower"]
    assert content["config"]["drop"] == 0.3
    content["config"]["drop"] = 0.0
    checkpoint.write(content, path)
    for command in ("sample", "nll", "explain", "diagnose"):
        refusal = cli(command, moons, "dry_run=true")
        assert refusal.code == 2, command
        assert "always told its label (drop=0)" in refusal.err
    assert cli("sample", moons, "label=[upper,none]", "dry_run=true").code == 2
    assert cli("sample", moons, "label=upper", "dry_run=true").code == 0
    assert cli("nll", moons, "label=own", "dry_run=true").code == 0
    for names in (None, "upper", [1, 2]):
        checkpoint.write(content | {"config": content["config"] | {"class_names": names}}, path)
        assert cli("sample", moons, "label=upper", "dry_run=true").code == 3
    for key in ("condition", "drop", "class_names"):
        del content["config"][key]
    checkpoint.write(content, path)
    assert cli("sample", moons, "dry_run=true").code == 0
    assert "takes no label" in cli("sample", moons, "label=0", "dry_run=true").err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data=checkerboard"], "no labels"),
        (["data=moons", "drop=1"], "drop=1"),
        (["data=moons", "condition=none", "drop=0.1"], "no condition to drop"),
        (["data=moons", "condition=vector"], "no vectors"),
        (["data=moons", "network=kde"], "network=kde takes none"),
        (["data=moons", "network=kernel", "level.sigma=0.5", "levels=one"], "network=kernel takes none"),
        (["data=moons", "network.classes=3"], "network.classes=3 is not the data's, 2"),
        (["data=moons", "condition=none", "network.classes=2"], "condition=label"),
        (["data=moons", "loss=esm"], "loss.target=known"),
        (["data=moons", "loss=flow", "sde=flow", "coupling=reflow"], "coupling=reflow makes its own items"),
        (["data=moons", "task=classifier"], "condition= is of a score"),
        (["data=moons", "class_names=[a,b]"], "class_names"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_condition_is_refused_before_any_work(cli, tmp_path, words, sentence):
    net = () if any(w.startswith(("network=", "task=")) for w in words) else NET
    given = () if any(w.startswith("condition=") for w in words) else ("condition=label",)
    refusal = cli("train", *given, *net, *words, "out=run")
    assert refusal.code == 2, refusal.err
    assert sentence in refusal.err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_drops_the_same_labels_and_keeps_its_condition(cli, moons, tmp_path):
    plan = ["train", "data=moons", *TINY, "checkpoint.every=1", "checkpoint.keep=9"]
    label = ("condition=label", "drop=0.5")
    assert cli(*plan, *label, "out=whole").code == 0
    middle = f"resume={tmp_path}/whole/checkpoints/step0000002.ckpt"
    done = cli(*plan, *label, "out=rest", middle)
    assert done.code == 0, done.err
    a, b = (checkpoint.read(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("whole", "rest"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    for words, sentence in (
        (("condition=none",), "was trained with condition=label, not none"),
        (("condition=label", "drop=0.2"), "drop was 0.5, is now 0.2"),
    ):
        refusal = cli(*plan, *words, "out=other", middle)
        assert refusal.code == 2
        assert sentence in refusal.err


def test_ones_own_labels_and_vectors(cli, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((40, 3)).astype("f4"))
    np.save(tmp_path / "y.npy", np.array(["no", "yes", "on", "null"])[np.arange(40) % 4])
    np.save(tmp_path / "c.npy", rng.standard_normal((40, 2)))
    data = ("data=array", "data.file=x.npy")
    done = cli("train", "condition=label", *data, "data.labels=y.npy", *TINY, "out=words")
    assert done.code == 0, done.err
    ckpt = "ckpt=words/checkpoints/last.ckpt"
    for name in ("no", "[null,yes]"):
        done = cli("sample", ckpt, f"label={name}", "n=2", "steps=2", "out=s", "overwrite=true")
        assert done.code == 0, done.err
        assert rows(tmp_path / "s/labels.csv")[0]["name"] == name.strip("[").split(",")[0]
    done = cli("train", "condition=vector", *data, "data.vectors=c.npy", *TINY, "out=v")
    assert done.code == 0, done.err
    done = cli("sample", "ckpt=v/checkpoints/last.ckpt", "vector=[[1,0],[0,1]]", "n=3", "steps=2", "out=s2")
    assert done.code == 0, done.err
    assert np.load(tmp_path / "s2/vectors.npy").tolist() == [[1, 0], [0, 1], [1, 0]]
    assert cli("nll", "ckpt=v/checkpoints/last.ckpt", "vector=own", "n=2", "out=n").code == 0
    for wish, sentence in (("[1]", "2 numbers each"), ("a.npy", "no such file"), ("word", "neither a list")):
        refusal = cli("sample", "ckpt=v/checkpoints/last.ckpt", f"vector={wish}", "dry_run=true")
        assert refusal.code == 2
        assert sentence in refusal.err


def carried(mixture, x, label):
    """log p of the component, carried along its own PF-ODE to t_max: what N(0, I) says there in the place of its own noise."""
    sde = VP(Linear())
    t = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    found = []
    for one, k in zip(x.double(), label, strict=True):
        variances, axes = torch.linalg.eigh(mixture.covs[k])
        before, after = (alpha[i] ** 2 * variances + sigma[i] ** 2 for i in (0, 1))
        x1 = alpha[1] * mixture.means[k] + axes @ (
            (after / before).sqrt() * (axes.T @ (one - alpha[0] * mixture.means[k]))
        )
        found.append(-0.5 * x1.square().sum() - math.log(2 * math.pi) + 0.5 * (after / before).log().sum())
    return torch.stack(found)


def test_the_likelihood_given_its_own_label_is_the_components(cli, tmp_path):
    exact = ("network=exact", "data=mixture", "n=20", "dtype=float64", "likelihood.divergence=exact", "overwrite=true")
    mixture = Mixture("four").mixture
    x, y = Mixture("four").split("test").__getitems__(range(20))
    for words, label in (("label=own", y), ("label=2", torch.full_like(y, 2))):
        done = cli("nll", *exact, words, "out=n", "likelihood.solver=rk45", "likelihood.tol=1e-7")
        assert done.code == 0, done.err
        found = torch.tensor([float(row["log_prob"]) for row in rows(tmp_path / "n/nll.csv")])
        assert torch.allclose(found.double(), carried(mixture, x, label), atol=1e-4)
    for words, sentence in (
        (("label=all",), "one label of an item"),
        (("label=own", "likelihood=path"), "likelihood=ode"),
        (("label=own", "data=moons", "network.file=m.npz"), "label=own"),
        (("label=own", "vector=[0.5]"), "takes no vector"),
    ):
        if "network.file=m.npz" in words:
            np.savez(tmp_path / "m.npz", weights=mixture.weights, means=mixture.means, covs=mixture.covs)
        refusal = cli("nll", *exact, *words, "out=bad")
        assert refusal.code == 2, refusal.err
        assert sentence in refusal.err


def test_pictures_of_labels(cli, tmp_path):
    """One column a class: the first row of the preview is one of each, and whole rows alone are shown."""
    from PIL import Image

    done = cli(
        "train", "condition=label", "data=digits", "trainer.max_steps=1", "batch_size=8", "preview.n=24", "preview.steps=2",
        "network.channels=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1", "out=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    with Image.open(tmp_path / "run/samples/step0000001.png") as grid:
        scale = 8  # 10 columns of 8 pixels and at least 640 in all
        assert grid.size == (10 * (8 * scale + 2) + 2, 16 + 2 * (8 * scale + 2) + 2)
        assert np.asarray(grid)[2:14, :60].max() > 200  # words
