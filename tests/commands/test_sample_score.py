"""diffcli sample with samplers that ask the score alone, and with a corrector: what they start from, need and refuse."""

import json

import numpy as np
import pytest
import torch

from diffcli.data.mixture import Mixture
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import DDIM, PredictorCorrector, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.randomness import ItemNoise

EXACT = ("sample", "network=exact", "data=mixture", "out=s", "overwrite=true", "dtype=float64")


def samples(folder):
    return np.load(folder / "s/samples.npy")


def record(folder):
    return json.loads((folder / "s/run.json").read_text())


@pytest.mark.parametrize(
    ("asked", "steps", "nfe", "last", "t_end"),
    [
        (("sampler=langevin",), 1000, 1000, "stop", 1e-3),
        (("sampler=langevin", "steps=3", "last=denoise"), 3, 4, "denoise", 1e-3),
        (("sampler=mode", "sampler.t=0.3", "nfe=7"), 7, 7, "stop", 0.3),
        (("sampler=langevin", "schedule=ddpm", "grid=levels", "steps=2000"), 2000, 2000, "stop", None),
        (("sampler=annealed_langevin", "sampler.level_steps=4", "steps=6"), 6, 29, "denoise", 1e-3),
        (("sampler=annealed_langevin", "sampler.level_steps=4", "nfe=30"), 6, 29, "denoise", 1e-3),
        (("sampler=pc", "sampler.predictor=dpm2", "steps=5", "last=stop"), 5, 15, "stop", 1e-3),
    ],
)
def test_steps_and_evaluations_are_those_reported(cli, tmp_path, asked, steps, nfe, last, t_end):
    done = cli(*EXACT, "n=4", *asked)
    assert done.code == 0, done.err
    found = record(tmp_path)
    assert (found["steps"], found["nfe"]["max"], found["results"]["last"]) == (steps, nfe, last)
    assert t_end is None or found["results"]["t_end"] == t_end


@pytest.mark.parametrize("sampler", ["langevin", "mode", "annealed_langevin"])
def test_where_the_walk_starts(cli, tmp_path, sampler):
    """The prior, a uniform draw, or the user's file, which goes before both; one tiny step shows it."""
    tiny = ("n=40", "steps=1", "last=stop", "sampler.r=1e-9")
    np.save(tmp_path / "x.npy", np.linspace(-20, 20, 80).reshape(40, 2))
    uniform = ("sampler.start=uniform", "sampler.low=3", "sampler.high=5")
    noise, found = ItemNoise(0, range(40), (2,), torch.float64), {}
    for name, more in (("prior", ()), ("uniform", uniform), ("file", (*uniform, "start=x.npy"))):
        done = cli(*EXACT, f"sampler={sampler}", *tiny, *more)
        assert done.code == 0, done.err
        found[name] = samples(tmp_path)
    expected = {"prior": noise(0), "uniform": 3 + 2 * noise.uniform("start"), "file": np.load(tmp_path / "x.npy")}
    for name, x in found.items():
        assert np.abs(x - np.asarray(expected[name])).max() < 1e-3, name


@pytest.mark.heavy
@pytest.mark.parametrize("words", [("level.sigma=0.3",), ("level.sigma=0", "loss=ism")], ids=["noised", "data"])
def test_a_model_of_one_level_is_sampled_by_langevin(cli, tmp_path, words):
    """It was trained on N(m, diag(0.25, 1)): the draws have its moments, and the ascent ends at m."""
    cloud = np.array([0.5, -0.3]) + np.random.default_rng(0).standard_normal((4000, 2)) * [0.5, 1.0]
    np.save(tmp_path / "cloud.npy", cloud)
    small = ("network=mlp", "network.width=32", "network.blocks=1", "batch_size=256", "trainer.max_steps=150")
    training = ("optim.lr=1e-2", "optim.warmup=20", "ema.decay=0.98", "preview.every=0", "out=one")
    done = cli("train", "data=array", "data.file=cloud.npy", "levels=one", *words, *small, *training)
    assert done.code == 0, done.err
    model = ("sample", "ckpt=one/checkpoints/last.ckpt", "out=s", "overwrite=true", "n=256", "batch_size=256")
    done = cli(*model, "sampler=langevin", "sampler.gamma=0.05", "steps=100")
    assert done.code == 0, done.err
    x = samples(tmp_path)
    noise = (float(words[0].partition("=")[2]) * cloud.std()) ** 2  # sigma is in units of the scaled data
    truth = np.sqrt(cloud.var(0) + noise)
    assert np.abs(x.mean(0) - cloud.mean(0)).max() < 0.25
    assert np.abs(x.std(0) / truth - 1).max() < 0.2
    done = cli(*model[:-2], "n=20", "sampler=mode", "sampler.gamma=0.1", "steps=150")
    assert done.code == 0, done.err
    assert np.ptp(samples(tmp_path), axis=0).max() < 0.5 * x.std()
    if "level.sigma=0" in words:
        done = cli(*model, "sampler=langevin")
        assert done.code == 2 and "no noise to scale r with" in done.err
    for more, says in (
        (("sampler=annealed_langevin",), "sampler=langevin|mode"),
        (("sampler=pc",), "sampler=langevin|mode"),
        (("sampler=langevin", "sde=vp"), "fits no other SDE"),
        (("sampler=langevin", "sampler.t=0.5"), "t must lie in"),
    ):
        done = cli(*model, *more)
        assert done.code == 2 and says in done.err, done.err
        assert "Traceback" not in done.err


def test_a_walk_that_cannot_leave_its_start_is_named(cli, tmp_path):
    """The distance that a random walk of these steps reaches, far below the width of where it begins."""
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    few = (*EXACT, "n=4", "sampler=langevin")
    for words, told in (
        ((), True),
        (("sampler.start=uniform",), True),
        (("steps=10", "sampler.t=0.5"), False),
        (("sampler.gamma=0.1",), False),
        (("start=x.npy",), False),
    ):
        done = cli(*few, *words)
        assert done.code == 0
        assert (
            "warning: at t = 0.001 the noise is 0.01, and 1000 steps move x by no more than about 0.15" in done.err
        ) == told
        assert done.err.count("warning") == told


def test_a_predictor_is_named_with_its_settings(cli, tmp_path):
    done = cli(*EXACT, "n=16", "steps=5", "sampler=pc", "sampler.predictor='ddim eta=0.5'", "sampler.corrector_steps=2")
    assert done.code == 0, done.err
    sde = VP(Linear())
    noise = ItemNoise(0, range(16), (2,), torch.float64)
    pc = PredictorCorrector(DDIM(0.5), corrector_steps=2)
    truth = sample(Exact(sde, Mixture().mixture), pc, sde.sample_prior(noise(0)), UniformLam()(sde, 5), noise).x
    assert np.allclose(samples(tmp_path), truth.numpy(), rtol=1e-9, atol=1e-9)


def test_the_score_alone_needs_no_prior(cli):
    """A path that ends with the data still in it, which walks from noise to data refuse."""
    short = (*EXACT, "schedule.beta_max=1", "n=4", "steps=4")
    assert cli(*short, "sampler=langevin").code == 0
    done = cli(*short, "sampler=pc")
    assert done.code == 2 and "its prior is wrong" in done.err


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("sampler=langevin", "sampler.r=3"), "r must lie between 0 and 2"),
        (("sampler=mode", "sampler.t=2"), "t must lie in [1e-05, 1], got 2"),
        (("sampler=langevin", "sampler.start=data"), "sampler.start=prior|uniform"),
        (("sampler=annealed_langevin", "sampler.level_steps=0"), "level_steps must be at least 1"),
        (("sampler=pc", "nfe=2"), "one step of this sampler takes 3"),
        (("sampler=pc", "sampler.predictor=rk45"), "chooses its own steps"),
        (("sampler=pc", "sampler.predictor=langevin"), "asks the score alone"),
        (("sampler=pc", "sampler.predictor=pc"), "has a predictor of its own"),
        (("sampler=pc", "sampler.predictor=ddimm"), "did you mean 'ddim'"),
        (("sampler=pc", "sampler.predictor=null"), "must name a sampler"),
        (("sampler=pc", "sampler.norms=batch"), "sampler.norms=expected|sample"),
    ],
)
def test_refusals(cli, asked, says):
    done = cli(*EXACT, *asked)
    assert done.code == 2 and says in done.err, done.err
    assert done.err.count("error:") == 1 and "Traceback" not in done.err
