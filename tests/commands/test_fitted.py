"""network=kde and network=kernel by the same commands as a trained model, and models of one level, which have no samples."""

import json

import numpy as np
import pytest
import torch

from diffcli.data.points import Points

MOONS = ("data=moons", "data.n=60", "preview.n=4", "preview.steps=3")
KERNEL = ("network=kernel", "network.centres=20", "network.levels=3", "network.bandwidth=0.5", "network.ridge=1e-4")


def test_kde_gives_the_training_items_back(cli, tmp_path):
    done = cli("train", "network=kde", *MOONS, "out=kde")
    assert done.code == 0, done.err
    assert (tmp_path / "kde/samples/step0000000.png").exists()
    record = json.loads((tmp_path / "kde/run.json").read_text())
    assert (record["status"], record["command"], record["results"]["items"]) == ("finished", "train", 60)
    ckpt = "ckpt=kde/checkpoints/last.ckpt"
    for weights in ("ema", "raw"):
        done = cli("sample", ckpt, "n=20", f"weights={weights}", "last=denoise", "out=drawn", "overwrite=true")
        assert done.code == 0, done.err
    drawn = torch.from_numpy(np.load(tmp_path / "drawn/samples.npy")).double()
    items = Points("moons", n=60).split("train").x.double()
    nearest = torch.cdist(drawn, items).min(1)
    assert nearest.values.max() < 1e-3
    assert len(nearest.indices.unique()) > 5
    done = cli("evaluate", ckpt, "n=20", "steps=4")
    assert done.code == 0, done.err
    done = cli("nll", ckpt, "n=2", "sde.t_min=0.01", "likelihood.solver=heun", "likelihood.steps=8")
    assert done.code == 0, done.err


def test_kernel_is_fitted_sampled_and_measured(cli, tmp_path):
    done = cli("train", *KERNEL, *MOONS, "out=kernel")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "kernel/run.json").read_text())["results"]
    assert len(results["held_out_ism"]) == results["levels"] == 3
    ckpt = "ckpt=kernel/checkpoints/last.ckpt"
    for words in (("sample", "n=4", "steps=3"), ("nll", "n=2", "likelihood.solver=heun", "likelihood.steps=4")):
        done = cli(*words, ckpt)
        assert done.code == 0, done.err
    again = cli("train", *KERNEL, *MOONS, "out=again", "preview.every=0")
    assert again.code == 0, again.err
    a, b = (torch.load(tmp_path / f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("kernel", "again"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("network=kde", "loss=ism"), "does not use loss="),
        (("network=kernel", "loss.weight=likelihood"), "does not use loss="),
        (("network=kde", "prediction=v"), "does not use prediction="),
        (("network=kde", "trainer.max_steps=3"), "does not use trainer="),
        (("network=kde", "resume=auto", "out=x"), "nothing to resume"),
        (("network=kde", "network.bandwidth=-1"), "bandwidth must be at least 0"),
        (("network=kde", "network.bandwidth=wide"), "network.bandwidth"),
        (("network=kde", "network.n=3"), "not the number of training items, 60"),
        (("network=kde", "levels=one", "level.sigma=0"), "have no width"),
        (("network=kernel", "network.levels=1"), "levels must be at least 2"),
        (("loss=dsm", "levels=one", "level.sigma=0"), "noise"),
        (("loss=ism", "levels=one", "level.sigma=0", "prediction=eps"), "prediction=score"),
        (("loss=esm", "loss.target=known"), "loss.target=kde"),
        (("loss=ssm", "loss.probes=0"), "probes must be at least 1"),
        (("loss=ssm", "loss.projection=cube"), "rademacher|gaussian|sphere"),
        (("loss=ism", "compile=true"), "compile=false"),
    ],
)
def test_refusals(cli, tmp_path, words, told):
    done = cli("train", *MOONS, *words)
    assert done.code == 2, done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_what_is_fitted_needs_a_training_first(cli):
    done = cli("sample", "network=kde", "data=moons")
    assert done.code == 2, done.err
    assert "diffcli train network=kde" in done.err


@pytest.mark.parametrize("words", [("network=mlp", "loss=ism", "level.sigma=0"), ("network=kde", "level.sigma=0.1")])
def test_a_model_of_one_level_has_no_samples(cli, tmp_path, words):
    training = () if "network=kde" in words else ("trainer.max_steps=2", "batch_size=16", "network.width=8")
    done = cli("train", *MOONS, "levels=one", *words, *training, "out=one")
    assert done.code == 0, done.err
    for command in (("sample",), ("nll",), ("evaluate",), ("sample", "sde=vp"), ("sample", "sde=flow")):
        done = cli(*command, "ckpt=one/checkpoints/last.ckpt")
        assert done.code == 2, done.err
        assert "one noise level" in done.err
        assert "Traceback" not in done.err


def ring(folder):
    """A circle in the plane z = 0 of space."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 2000)
    np.save(folder / "ring.npy", np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1))
    return f"data.file={folder / 'ring.npy'}"


@pytest.mark.heavy
@pytest.mark.parametrize(("sigma", "warned"), [(0.0, True), (0.1, False)])
def test_on_a_thin_ring_training_warns_of_a_value_without_bound(cli, tmp_path, sigma, warned):
    """With sigma = 0.1 the value converges to that of the noised ring, -1/2 sigma^-2 in two of three dimensions."""
    words = ("levels=one", f"level.sigma={sigma}", "loss=ism", "network=mlp", "network.width=64", "network.blocks=1")
    words += ("trainer.max_steps=300", "batch_size=64", "optim.lr=2e-2", "optim.warmup=20", "ema.decay=0.9")
    often = ("trainer.val_check_interval=300", "trainer.log_every_n_steps=5")
    done = cli("train", "data=array", ring(tmp_path), *words, *often, "out=run")
    assert done.code == 0, done.err
    assert done.err.count("warning: the loss has fallen") == warned
    assert ("level.sigma=0.058" in done.err) == warned  # a tenth of sqrt(1/3)
    value = json.loads((tmp_path / "run/run.json").read_text())["results"]["val_loss"]
    if warned:
        assert value < -150
    else:
        assert -36 < value < -24
