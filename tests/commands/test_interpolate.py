"""diffcli interpolate: its ends are what was asked for, its frames what lies between."""

import json
import math

import numpy as np
import pytest
from PIL import Image

EXACT = ("network=exact", "data=mixture", "dtype=float64")
SMALL = ("data=digits", "network.channels=8", "network.multipliers=[1,2]", "network.attention=[4]", "preview.every=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from diffcli.cli import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *SMALL, "condition=label", "trainer.max_steps=4", f"out={folder}/run"]) == 0
    return folder / "run/checkpoints/last.ckpt"


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_the_ends_are_the_inputs_and_the_frames_are_the_great_circles(cli, tmp_path):
    """Both by the commands that encode and decode: frames decode what lies on the circle through the encoded ends."""
    ends = np.array([[1.0, 2.0], [-2.0, -1.0]])
    for name, x in zip("ab", ends, strict=True):
        np.save(tmp_path / f"{name}.npy", x[None])
    few = ("steps=100", "sampler=dpm3")
    assert cli("interpolate", *EXACT, *few, "a=a.npy", "b=b.npy", "frames=5", "out=i").code == 0
    frames, found = np.load(tmp_path / "i/frames.npy"), record(tmp_path / "i")["results"]
    assert frames.shape == (1, 5, 2)
    assert np.abs(frames[0, [0, -1]] - ends).max() < 1e-4
    assert found["ends"]["worst"] == np.sqrt(np.square(frames[0, [0, -1]] - ends).mean(1)).max()
    assert cli("encode", *EXACT, *few, "input=[a.npy,b.npy]", "out=e").code == 0
    a, b = np.load(tmp_path / "e/latents.npy")
    between = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found["angle"][0] == pytest.approx(math.degrees(between), rel=1e-6)
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    middle = (u + v) / np.linalg.norm(u + v) * (np.linalg.norm(a) + np.linalg.norm(b)) / 2
    np.save(tmp_path / "z.npy", middle[None])
    assert cli("decode", *EXACT, *few, "input=z.npy", "out=d").code == 0
    assert np.allclose(np.load(tmp_path / "d/samples.npy")[0], frames[0, 2], atol=1e-6)


def test_a_seed_is_the_first_sample_of_that_seed(cli, tmp_path):
    few = ("steps=40", "sampler=dpm3")
    assert cli("interpolate", *EXACT, "sde=ve", *few, "a=3", "b=seed:7", "frames=3", "out=i").code == 0
    frames = np.load(tmp_path / "i/frames.npy")[0]
    for seed, frame in ((3, frames[0]), (7, frames[-1])):
        assert cli("sample", *EXACT, "sde=ve", *few, "n=1", f"seed={seed}", f"out=s{seed}").code == 0
        assert np.allclose(np.load(tmp_path / f"s{seed}/samples.npy")[0], frame, atol=1e-9)
    few = ("steps=40", "sampler=ancestral")
    noise = ("way=stochastic", "t=0.002", "seed=5")
    assert cli("interpolate", *EXACT, *few, *noise, "a=seed:3", "b=7", "frames=3", "out=n").code == 0
    assert cli("sample", *EXACT, *few, "n=1", "seed=3", "out=t").code == 0
    end = np.load(tmp_path / "n/frames.npy")[0, 0]
    assert np.abs(np.load(tmp_path / "t/samples.npy")[0] - end).max() < 0.1


def test_one_end_goes_with_several_others(cli, tmp_path):
    """A pair is told its own entry of label=, at both of its ends and in each of its frames."""
    asked = ("a=[1,test:2,3]", "b=test:0", "frames=4", "steps=20")
    assert cli("interpolate", *EXACT, *asked, "label=[0,1,2]", "out=i").code == 0
    assert cli("interpolate", *EXACT, "a=test:2", "b=test:0", "frames=4", "steps=20", "label=1", "out=j").code == 0
    several, one = np.load(tmp_path / "i/frames.npy"), np.load(tmp_path / "j/frames.npy")
    assert several.shape == (3, 4, 2)
    assert np.allclose(several[1], one[0])
    assert record(tmp_path / "i")["results"]["pairs"] == [
        ["seed 1", "test 0"],
        ["test 2", "test 0"],
        ["seed 3", "test 0"],
    ]


@pytest.mark.parametrize("noise", ["shared", "own"])
def test_little_noise_leaves_the_line(cli, tmp_path, noise):
    """At t near the last time a stochastic way is the line between its ends; at t = 1 nothing of them is left."""
    asked = ("way=stochastic", "sampler=ancestral", f"noise={noise}", "frames=5")
    assert cli("interpolate", *EXACT, *asked, "t=0.0012", "out=i").code == 0
    frames, found = np.load(tmp_path / "i/frames.npy")[0], record(tmp_path / "i")
    from diffcli.data.mixture import Mixture

    x, _ = Mixture().split("test").__getitems__([0, 1])
    line = x[0].numpy() + np.linspace(0, 1, 5)[:, None] * (x[1] - x[0]).numpy()
    assert np.abs(frames - line).max() < 0.1
    assert found["results"]["t"] == 0.0012
    assert found["nfe"]["max"] < 5
    assert cli("interpolate", *EXACT, *asked, "t=1", "out=k").code == 0
    whole = record(tmp_path / "k")
    assert whole["nfe"]["max"] == 51
    assert whole["results"]["alpha"] < 0.01


def test_frames_do_not_depend_on_the_batch(cli, tmp_path, trained):
    asked = (
        "interpolate",
        f"ckpt={trained}",
        "steps=3",
        "label=[1,2,3]",
        "way=stochastic",
        "sampler=ancestral",
        "png=false",
    )
    assert cli(*asked, "a=[1,2,test:3]", "b=test:0", "batch_size=64", "out=a").code == 0
    assert cli(*asked, "a=[1,2]", "b=test:0", "batch_size=16", "out=b").code == 0
    a, b = (np.load(tmp_path / out / "frames.npy") for out in "ab")
    assert a.shape == (3, 9, 1, 8, 8)
    assert np.array_equal(a[:2], b)


def test_files_of_pictures(cli, tmp_path, trained):
    """The strip has both inputs beside the frames, the film goes there and back."""
    done = cli("interpolate", f"ckpt={trained}", "steps=2", "frames=5", "label=4", "out=i")
    assert done.code == 0, done.err
    names = {p.name for p in (tmp_path / "i").iterdir()}
    assert names == {"run.json", "strip.png", "interpolation.gif", "frames.npy", "frames"}
    assert Image.open(tmp_path / "i/interpolation.gif").n_frames == 9
    assert len(list((tmp_path / "i/frames").glob("*.png"))) == 5
    wide, tall = Image.open(tmp_path / "i/strip.png").size
    assert wide / tall == pytest.approx(7, rel=0.25)
    assert "latents:" in done.out
    assert "the ends come back" in done.out
    assert record(tmp_path / "i")["config"]["label"] == 4


def test_points_have_their_paths_drawn(cli, tmp_path):
    assert cli("interpolate", *EXACT, "steps=5", "out=i").code == 0
    assert {p.name for p in (tmp_path / "i").iterdir()} == {"run.json", "path.png", "frames.npy"}
    assert Image.open(tmp_path / "i/path.png").size == (600, 600)


def test_a_flow_and_a_free_field_have_latents_too(cli, tmp_path):
    small = ("data=moons", "network=mlp", "network.width=8", "preview.every=0", "trainer.max_steps=2")
    flow = ("sde=flow", "prediction=velocity", "loss=flow")
    free = ("sde=flow", "prediction=velocity", "prediction.free=true", "loss=cnf", "loss.solver=rk4", "loss.steps=1")
    for name, words in (("flow", flow), ("free", free)):
        assert cli("train", *small, *words, f"out={name}").code == 0
        asked = (f"ckpt={name}/checkpoints/last.ckpt", "dtype=float64")
        done = cli("interpolate", *asked, "frames=3", "steps=40", "sampler=rk4", f"out={name}_i")
        assert done.code == 0, done.err
        assert record(tmp_path / f"{name}_i")["results"]["ends"]["relative"] < 1e-3
    refused = cli("interpolate", "ckpt=free/checkpoints/last.ckpt", "noised=true")
    assert refused.code == 2
    assert "free field" in refused.err
    assert cli("interpolate", "ckpt=free/checkpoints/last.ckpt", "way=stochastic").code == 2
