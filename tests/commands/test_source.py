"""source=DATA from the command line: what it trains and translates, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

TINY = ("network.width=8", "network.blocks=1", "batch_size=16", "trainer.max_steps=2", "optim.warmup=1")
POINTS = ("train", "data=circles", "data.n=200", *TINY, "preview.every=0")


def refused(done, sentence):
    assert (done.code, done.err.count("error: "), "Traceback" in done.err) == (2, 1, False), done.err
    assert sentence in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("source=moonz", "no source named 'moonz', did you mean 'moons'?"),
        ("source=5", "no source named '5'"),
        ("source=", "source= is empty"),
        ("sourc=moons", "did you mean 'source'?"),
        ("source.noise=0.3", "source.noise is a setting of source=checkerboard"),
        ("source=moons source.nois=0.1", "no setting 'source.nois', did you mean 'source.noise'?"),
        ("source=moons source.noise=-1", "is not a standard deviation"),
        ("source=image_folder", "needs source.root"),
        ("source=array source.file=none.npy", "there is no such file"),
        ("source=digits", "source=digits has items of shape (1, 8, 8), data=circles of (2,)"),
        ("source=moons loss=dsm", "source=moons goes with flow matching, and loss=dsm starts from noise"),
        ("source=moons prediction=eps", "source=moons trains a velocity, and prediction=eps is none"),
        ("source=moons prediction.free=false", "source= trains a free field"),
        ("source=moons sde=ve", "a path that ends in its items"),
        ("source=moons sampler=ancestral preview.every=1", "no score for this SDE sampler"),
        ("source=moons coupling=reflow", "coupling=reflow pairs samples with their noise"),
        ("source=moons source_noise=-1", "source_noise must be at least 0"),
        ("source=moons levels=one", "levels=one is a model of one noise level"),
        ("source=moons network=kde", "does not use source="),
        ("source=moons task=classifier", "source= is of a score"),
        ("source_noise=0.1", "source_noise=0.1 is of the path between two data sets"),
        ("source=moons,circles", "source has several values"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(cli, tmp_path, words, sentence):
    refused(cli("train", "data=circles", "data.n=100", *words.split(), "out=t"), sentence)
    assert not (tmp_path / "t").exists()


@pytest.mark.heavy
def test_a_source_is_chosen_swept_and_shown(cli, tmp_path):
    done = cli("train", "source=moons", "data=circles", "--cfg", "job", "--resolve")
    assert done.code == 0, done.err
    assert "source:\n  _target_: diffcli.data.points.Points\n  name: moons" in done.out
    assert "diffcli.diffusion.loss.Flow" in done.out  # loss, path and prediction come with it
    assert "  source  (default: none)  any of data" in cli("train", "--help").out
    done = cli(*POINTS, "-m", "source=moons,swiss_roll", "dry_run=true")
    assert done.code == 0, done.err
    assert done.out.count("would train") == 2
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text(
        "# mine\n_target_: diffcli.data.points.Points\nname: moons\nn: 50\nseed: ${seed}\n"
    )
    done = cli(*POINTS, "--config-dir", "conf", "source=mine", "source.n=60", "out=t", "sde=vp", "source_noise=0.2")
    assert done.code == 0, done.err
    config = torch.load(tmp_path / "t/checkpoints/last.ckpt", weights_only=True)["config"]
    assert config["source"] == {"_target_": "diffcli.data.points.Points", "name": "moons", "n": 60, "seed": 0}
    assert (config["denoiser"]["free"], config["denoiser"]["sde"]["_target_"]) == (True, "diffcli.diffusion.sde.VP")


@pytest.mark.heavy
def test_commands_take_such_a_model_or_say_why_not(cli, tmp_path):
    assert cli(*POINTS, "source=moons", "source.n=40", "out=t").code == 0
    assert cli(*POINTS, "out=noise").code == 0
    ckpt = "ckpt=t/checkpoints/last.ckpt"
    np.save(tmp_path / "bad.npy", np.zeros((3, 5)))
    for words, sentence in (
        (("nll", ckpt), "nll would need their density, and there are the items alone"),
        (("diagnose", ckpt), "no score for the checks"),
        (("explain", ckpt), "no noise on its way"),
        (("encode", ckpt), "starts from the items of a source"),
        (("sample", ckpt, "sampler=ancestral"), "no score for this SDE sampler"),
        (("sample", ckpt, "input=nowhere"), "input=nowhere: there is no such file or folder"),
        (("sample", ckpt, "input=bad.npy"), "bad.npy has items of shape (5,)"),
        (("sample", ckpt, "input=bad.npy", "start=bad.npy"), "both say where samples start"),
        (("sample", ckpt, "each=2"), "an ODE leads each item to one place"),
        (("sample", ckpt, "source.nois=2"), "did you mean 'noise'?"),
        (("sample", "ckpt=noise/checkpoints/last.ckpt", "input=bad.npy"), "starts from noise and takes no input"),
        (("sample", "ckpt=noise/checkpoints/last.ckpt", "source.n=2"), "this one starts from noise"),
        (
            ("train", *POINTS[1:], "loss=flow", "coupling=reflow", ckpt),
            "starts from the items of a source, not from noise",
        ),
    ):
        refused(cli(*words, "out=s"), sentence)
        assert not (tmp_path / "s").exists()
    done = cli("sample", ckpt, "n=50", "steps=2", "out=s")
    assert done.code == 0, done.err
    x, y = (np.load(tmp_path / "s" / f"{name}.npy") for name in ("source", "samples"))
    assert np.array_equal(x[:10], x[40:])  # item i mod 40
    assert np.allclose(y[:10], y[40:], atol=1e-6)
    assert cli("sample", ckpt, "source.seed=5", "n=4", "steps=2", "out=s2").code == 0  # the data set may be changed
    assert not np.array_equal(np.load(tmp_path / "s2/source.npy"), x[:4])
    assert cli("export", ckpt, "out=e").code == 0
    assert cli("import", "path=e", "out=i").code == 0
    assert cli("sample", "ckpt=i/checkpoints/last.ckpt", "n=10", "steps=2", "out=s3").code == 0
    assert np.allclose(np.load(tmp_path / "s3/samples.npy"), y[:10], atol=1e-6)
    words = ("n=30", "repeats=2", "steps=2", "neighbours=false", "compared=30")
    done = cli("evaluate", ckpt, *words, "out=card")
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "card/card.json").read_text())
    assert card["draw"]["source"]["name"] == "moons"
    assert any("start from 40 items of the source" in warning for warning in card["warnings"])
    assert cli("compare", ckpt, "samplers=[dpm2,ancestral]", "nfe=[4]", "n=30", "out=c").code == 0


def test_pictures_are_translated_by_name(cli, tmp_path):
    words = (
        "network.channels=8",
        "network.multipliers=[1]",
        "network.attention=[]",
        "batch_size=8",
        "trainer.max_steps=2",
    )
    done = cli(
        "train", "source=digits", "data=digits", "condition=label", *words, "preview.n=3", "preview.steps=2", "out=t"
    )
    assert done.code == 0, done.err
    assert (tmp_path / "t/samples/step0000002.png").exists()
    assert not (tmp_path / "t/denoised.png").exists()
    (tmp_path / "in").mkdir()
    for k, name in enumerate("ba"):
        Image.fromarray(np.full((8, 8), 255 * k, np.uint8)).save(tmp_path / "in" / f"{name}.png")
    done = cli("sample", "ckpt=t/checkpoints/last.ckpt", "input=in", "label=3", "steps=2", "out=s")
    assert done.code == 0, done.err
    source = np.load(tmp_path / "s/source.npy")
    assert source.shape == np.load(tmp_path / "s/samples.npy").shape == (2, 1, 8, 8)
    assert [x.mean() for x in source] == [16, 0]  # a.png, then b.png, on the digits' own levels
    assert sorted(p.name for p in (tmp_path / "s/samples").iterdir()) == ["a.png", "b.png"]
    grid = np.asarray(Image.open(tmp_path / "s/grid.png"))
    side = grid.shape[0] // 2
    assert (grid[side // 2, side // 2], grid[side // 2, side + side // 2]) == (255, 0)  # the inputs are the upper row
    assert json.loads((tmp_path / "s/run.json").read_text())["config"]["source"]["_target_"].endswith("Digits")
