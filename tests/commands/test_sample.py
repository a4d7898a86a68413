"""diffcli sample: a sample is a function of the seed and its index, in the data's units, by the sampler that was asked for."""

import json

import numpy as np
import pytest
import torch

from diffcli.commands.trajectory import Trajectory
from diffcli.data.mixture import Mixture
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import DDIM, RK45, Ancestral, Heun, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.randomness import ItemNoise
from diffcli.sampling import draw_samples

SAMPLERS = ["euler_maruyama", "ancestral", "ddim", "heun", "dpm2", "rk45"]
TINY = (
    "network.channels=8",
    "network.multipliers=[1,2]",
    "network.attention=[4]",
    "preview.every=0",
    "trainer.max_steps=30",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A U-Net on the digits, trained a little: its weights are not those of a fresh one."""
    from diffcli.cli import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, f"out={folder}", "optim.lr=1e-2", "optim.warmup=0"]) == 0
    return folder / "checkpoints/last.ckpt"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_depends_on_seed_and_index_alone(cli, tmp_path, trained, sampler):
    """Bit for bit the same in any n and batch_size, and with a trajectory beside it."""
    few = "sampler.tol=1e-2" if sampler == "rk45" else "steps=4"
    asked = ("sample", f"ckpt={trained}", f"sampler={sampler}", few, "png=false")
    for out, n, batch_size in (("a", 37, 64), ("b", 21, 5), ("c", 37, 16)):
        assert (
            cli(
                *asked, f"n={n}", f"batch_size={batch_size}", f"out={out}", f"trajectory={str(out == 'c').lower()}"
            ).code
            == 0
        )
    assert cli(*asked, "n=21", "seed=1", "out=d").code == 0
    a, b, c, d = (np.load(tmp_path / name / "samples.npy") for name in "abcd")
    assert a.shape == (37, 1, 8, 8)
    assert np.array_equal(a[:21], b)
    assert np.array_equal(a, c)
    assert np.abs(a[:21] - d).max() > 0.1
    assert len(np.unique(a.reshape(37, -1), axis=0)) == 37


def test_start_is_x_at_t_max(cli, tmp_path):
    """The endpoint of a given start is that of the PF-ODE from there; samples are in the data's own units."""
    start = np.random.default_rng(0).standard_normal((20, 2))
    np.save(tmp_path / "noise.npy", start)
    done = cli("sample", "network=exact", "data=mixture", "start=noise.npy", "steps=400", "dtype=float64", "out=s")
    assert done.code == 0, done.err
    sde = VP(Linear())
    times = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    truth = sample(Exact(sde, Mixture().mixture), RK45(1e-9), torch.from_numpy(start), times, None).x.numpy()
    found = np.load(tmp_path / "s/samples.npy")
    assert np.median(np.abs(found - truth)) < 1e-4


@pytest.mark.parametrize(
    ("asked", "steps", "nfe"),
    [
        (("sampler=dpm2", "nfe=11"), 5, 10),
        (("sampler=ddim", "nfe=11"), 11, 11),
        (("sampler=ancestral", "nfe=11"), 10, 11),  # one for the last, denoising, evaluation
        (("sampler=heun", "steps=3", "last=denoise"), 3, 7),
        (("sampler=euler_maruyama", "steps=3", "last=stop"), 3, 3),
    ],
)
def test_steps_and_evaluations_are_those_reported(cli, tmp_path, asked, steps, nfe):
    assert cli("sample", "network=exact", "data=mixture", "n=4", "out=s", *asked).code == 0
    record = json.loads((tmp_path / "s/run.json").read_text())
    assert (record["steps"], record["nfe"]) == (steps, {"mean": nfe, "min": nfe, "max": nfe})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_samples_follow_the_mixture(cli, tmp_path, sampler):
    """Through the whole command, the samples have the mixture's mean and covariance to Monte-Carlo error."""
    few = "sampler.tol=1e-4" if sampler == "rk45" else "steps=200"
    assert (
        cli(
            "sample", "network=exact", "data=mixture", f"sampler={sampler}", few, "n=3000", "batch_size=3000", "out=s"
        ).code
        == 0
    )
    x, mixture = np.load(tmp_path / "s/samples.npy"), Mixture().mixture
    w, m, c = (a.numpy() for a in (mixture.weights, mixture.means, mixture.covs))
    mean = w @ m
    cov = np.einsum("k,kij->ij", w, c + np.einsum("ki,kj->kij", m - mean, m - mean))
    error = np.abs(x.mean(0) - mean) / np.sqrt(np.diag(cov) / len(x))
    assert error.max() < 4
    assert np.abs(np.cov(x.T) - cov).max() / np.abs(cov).max() < 0.08


def test_files_of_a_run(cli, tmp_path, trained):
    done = cli("sample", f"ckpt={trained}", "n=18", "steps=2", "trajectory=true", "out=s")
    assert done.code == 0
    names = {p.name for p in (tmp_path / "s").iterdir()}
    assert names == {"run.json", "samples.npy", "samples", "grid.png", "trajectory.png", "trajectory.gif"}
    assert len(list((tmp_path / "s/samples").glob("*.png"))) == 18
    record = json.loads((tmp_path / "s/run.json").read_text())
    assert {
        "command",
        "config",
        "seed",
        "git",
        "versions",
        "hardware",
        "steps",
        "nfe",
        "seconds",
        "results",
    } <= record.keys()
    assert record["config"]["ckpt"] == str(trained)
    assert "18 samples, 4 network evaluations each" in done.out


def test_files_of_points(cli, tmp_path):
    done = cli("sample", "network=exact", "data=mixture", "n=18", "steps=2", "trajectory=true", "out=s")
    assert done.code == 0 and done.err == ""  # no progress bar where there is no terminal
    names = {p.name for p in (tmp_path / "s").iterdir()}
    assert names == {"run.json", "samples.npy", "grid.png", "flow.png", "trajectory.png", "trajectory.gif"}


@pytest.mark.parametrize(("sampler", "total", "unit"), [("ddim", 3 * 4, "step"), ("rk45", 37, "sample")])
def test_the_progress_bar_ends_at_its_total(cli, monkeypatch, sampler, total, unit):
    """Steps of all the batches; samples where the sampler chooses its steps."""
    bars = []

    class Bar:
        def __init__(self, **settings):
            self.settings, self.at = settings, [0]
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self, by=1):
            self.at.append(self.at[-1] + by)

    monkeypatch.setattr("diffcli.commands.walk.tqdm", Bar)
    few = ("sampler.tol=1e-2",) if sampler == "rk45" else ("steps=4",)
    asked = ("sample", "network=exact", "data=mixture", f"sampler={sampler}", *few, "n=37", "batch_size=16", "out=s")
    assert cli(*asked).code == 0
    ((settings, at),) = [(bar.settings, bar.at) for bar in bars]
    assert (settings["total"], settings["unit"], settings["disable"]) == (total, unit, None)
    assert at[-1] == total and len(set(at)) == (total + 1 if unit == "step" else 4)


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), Ancestral(), RK45(1e-6)])
def test_a_trajectory_pairs_x_with_the_estimate_made_there(sampler):
    """Of the first items only, across batches, with the start and the end."""
    model, sde = Exact(VP(Linear()), Mixture().mixture), VP(Linear())
    times = UniformLam()(sde, 40)
    seen = Trajectory(times, 50, items=20, most=6)
    drawn = draw_samples(
        model,
        sampler,
        times,
        (2,),
        50,
        0,
        16,
        callback=seen.callback,
        see=seen.see,
        last="denoise",
        dtype=torch.float64,
    )
    samples = torch.cat([batch.x for batch in drawn])
    assert seen.at == [0, 8, 16, 24, 32, 40]
    assert seen.x.shape == seen.x0.shape == (6, 20, 2)
    noise = ItemNoise(0, range(20), (2,))(0)
    assert torch.equal(seen.x[0], noise)
    expected = torch.stack([model(x.double(), t) for x, t in zip(seen.x, times[seen.at], strict=True)])
    close = 0.15 if sampler.evaluations is None else 1e-5  # the newest of its own steps, before the time
    assert (seen.x0 - expected).abs().max() < close
    assert (expected.diff(dim=0).abs().amax((1, 2)) > 2 * close)[1:3].all()
    assert (seen.x0[-1] - samples[:20]).abs().max() < 1e-5


def test_an_estimate_belongs_to_the_times_before_it_and_the_item_it_is_of():
    """t of each item its own, as of an adaptive sampler; and all of one level, where the order is what tells."""
    seen = Trajectory(torch.tensor([1.0, 0.5, 0.1]), 3, items=2, most=3)
    seen.callback(0, 0, torch.zeros(3, 1))
    for n, t in enumerate([(1.0, 1.0, 1.0), (0.7, 0.5, 1.0), (0.4, 0.6, 0.1), (0.05, 0.1, 0.1)]):
        seen.see(0, torch.full((3, 1), float(n)), torch.tensor(t))
    for i in (1, 2):
        seen.callback(0, i, torch.zeros(3, 1))
    assert seen.x0[..., 0].tolist() == [[0, 0], [1, 2], [2, 3]]
    level = Trajectory(torch.zeros(4), 1, items=1, most=4)
    for i in range(4):
        level.callback(0, i, torch.full((1, 1), float(i)))
        level.see(0, torch.full((1, 1), 10.0 + i), torch.tensor(0.0))
    assert level.x.flatten().tolist() == [0, 1, 2, 3] and level.x0.flatten().tolist() == [10, 11, 12, 13]


def test_newest_run_is_found_and_named(cli, tmp_path, trained):
    assert cli("sample").code == 2
    new = tmp_path / "outputs/train/run/checkpoints"
    new.mkdir(parents=True)
    (new / "last.ckpt").write_bytes(trained.read_bytes())
    done = cli("sample", "n=2", "steps=1")
    assert done.code == 0
    assert "outputs/train/run/checkpoints/last.ckpt" in done.out


def test_another_sde_rescales_the_model(cli, tmp_path, trained):
    """At matched levels VE walks the same path as VP, so the same noise ends at the same picture."""
    assert cli("sample", f"ckpt={trained}", "n=6", "steps=60", "dtype=float64", "out=vp").code == 0
    done = cli(
        "sample", f"ckpt={trained}", "n=6", "steps=60", "dtype=float64", "sde=ve", "schedule.sigma_max=200", "out=ve"
    )
    assert done.code == 0, done.err
    vp, ve = (np.load(tmp_path / name / "samples.npy") for name in ("vp", "ve"))
    assert np.median(np.abs(vp - ve)) < 0.01 * vp.std()  # the ends of the two time ranges differ a little


def test_raw_and_averaged_weights_differ(cli, tmp_path, trained):
    for weights in ("raw", "ema"):
        assert cli("sample", f"ckpt={trained}", "n=2", "steps=2", f"weights={weights}", f"out={weights}").code == 0
    assert not np.array_equal(*(np.load(tmp_path / w / "samples.npy") for w in ("raw", "ema")))
