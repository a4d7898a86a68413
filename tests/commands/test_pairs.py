"""Paired translation from the folder to the pictures: task=paired, input=, each=."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.checkpoint import load_denoiser
from diffcli.networks.concatenated import Concatenated

TINY = (
    "data.size=8",
    "data.channels=1",
    "data.input_channels=1",
    "network=mlp",
    "network.width=32",
    "network.blocks=1",
)
TINY += (
    "trainer.max_steps=200",
    "batch_size=32",
    "preview.every=200",
    "preview.n=4",
    "preview.steps=2",
    "optim.lr=0.01",
)
TINY += ("prediction=edm", "checkpoint.every=200", "trainer.val_check_interval=200")
CKPT = "ckpt=run/checkpoints/last.ckpt"


def make(root, n=40):
    """Squares and their negatives: the target is the input inverted."""
    rng = np.random.default_rng(0)
    for i in range(n):
        a = np.full((8, 8), 40, np.uint8)
        y, x = rng.integers(0, 5, 2)
        a[y : y + 4, x : x + 4] = 220
        for side, pixels in (("input", a), ("target", 255 - a)):
            (root / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / side / f"shape{i:02d}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pairs/ and a finished run/ of them, which tests only read."""
    from diffcli.cli import main

    root = tmp_path_factory.mktemp("paired")
    make(root / "pairs")
    assert main(["train", "task=paired", f"data.root={root}/pairs", *TINY, f"out={root}/run"]) == 0
    return root


@pytest.fixture
def here(cli, trained, tmp_path):
    (tmp_path / "run").symlink_to(trained / "run")
    (tmp_path / "pairs").symlink_to(trained / "pairs")
    return cli


def test_training_says_what_it_is(trained):
    config = json.loads((trained / "run/run.json").read_text())["config"]
    assert config["condition"] == "image" and config["drop"] == 0
    assert config["network"]["network"]["shape"] == [3, 8, 8] and config["network"]["image"] == [1, 8, 8]
    network = load_denoiser(trained / "run/checkpoints/last.ckpt").network
    assert isinstance(network, Concatenated)
    with Image.open(trained / "run/samples/step0000200.png") as shown:
        assert shown.width > 2 * shown.height  # of four: input, sample and target of three beside each other


def test_own_pictures_are_translated(here, trained, tmp_path):
    done = here("sample", CKPT, "input=pairs/input", "each=2", "steps=3", "out=a")
    assert done.code == 0, done.err
    x = np.load(tmp_path / "a/samples.npy")
    assert x.shape == (80, 1, 8, 8)
    names = sorted(f.name for f in (tmp_path / "a/samples").iterdir())
    assert names[:3] == ["shape00_0.png", "shape00_1.png", "shape01_0.png"] and len(names) == 80
    results = json.loads((tmp_path / "a/run.json").read_text())
    assert results["config"]["input"] == "pairs/input" and results["config"]["each"] == 2
    assert results["config"]["n"] == 80
    assert (tmp_path / "a/grid.png").exists()
    # the model's answer is that of the library, given the same image: the pair stays together
    assert here("sample", CKPT, "input=pairs/input/shape07.png", "steps=3", "n=1", "out=b").code == 0
    assert [f.name for f in (tmp_path / "b/samples").iterdir()] == ["shape07.png"]


def test_sample_i_has_the_condition_of_i_alone(here, tmp_path):
    for out, words in (("a", ["batch_size=64"]), ("b", ["batch_size=3"])):
        assert here("sample", CKPT, "input=pairs/input", "n=9", "steps=3", *words, f"out={out}").code == 0
    a, b = np.load(tmp_path / "a/samples.npy"), np.load(tmp_path / "b/samples.npy")
    assert np.allclose(a, b, atol=1e-2)
    rows = np.stack([np.asarray(Image.open(tmp_path / f"pairs/input/shape{i:02d}.png"))[None] for i in range(9)])
    np.save(tmp_path / "c.npy", rows)
    assert here("sample", CKPT, "input=c.npy", "n=9", "steps=3", "out=c").code == 0
    assert np.allclose(a, np.load(tmp_path / "c/samples.npy"), atol=1e-2)
    assert {f.name for f in (tmp_path / "c/samples").iterdir()} >= {"c_000000.png", "c_000008.png"}
    np.save(tmp_path / "d.npy", rows[::-1])
    assert here("sample", CKPT, "input=d.npy", "n=9", "steps=3", "out=d").code == 0
    assert not np.allclose(a, np.load(tmp_path / "d/samples.npy"), atol=1)  # other images, the same noise


def test_without_input_the_test_split_is(here, tmp_path):
    done = here("sample", CKPT, "n=6", "steps=3", "out=a")
    assert done.code == 0, done.err
    names = sorted(f.stem for f in (tmp_path / "a/samples").iterdir())
    assert names == ["shape00_0", "shape00_1", "shape10", "shape20", "shape30"] or len(names) == 6
    own = [f"pairs/input/shape{i}.png" for i in ("00", "10", "20", "30")]
    assert here("sample", CKPT, f"input=[{','.join(own)}]", "n=6", "steps=3", "out=b").code == 0
    assert np.allclose(np.load(tmp_path / "a/samples.npy"), np.load(tmp_path / "b/samples.npy"), atol=1e-2)


def test_training_learns_from_the_image(trained):
    """The loss of the trained model rises where items get the images of others."""
    from diffcli.data.image_pairs import ImagePairs
    from diffcli.diffusion.loss import DSM
    from diffcli.randomness import Draw

    data = ImagePairs(str(trained / "pairs"), size=8, channels=1, input_channels=1)
    items = data.split("all")
    x0 = data.transform.encode(items.__getitems__(range(40))[0])
    image = data.transform.encode(items.given(range(40), "image"))
    denoiser, loss = load_denoiser(trained / "run/checkpoints/last.ckpt", weights="raw"), DSM()
    own, other = (
        torch.cat([loss(denoiser, x0, Draw(0, i, 0), image=given) for i in range(8)])
        for given in (image, image.roll(7, 0))
    )
    rise = other - own
    assert rise.mean() > 5 * rise.std() / len(rise) ** 0.5


def test_figures_are_of_the_pairs(here, tmp_path):
    """evaluate gives the samples the images of the split; nll gives each item its own, and not that of another."""
    done = here("evaluate", CKPT, "n=4", "repeats=1", "steps=2", "neighbours=false", "out=e")
    assert done.code == 0, done.err
    assert here("nll", CKPT, "n=3", "out=own").code == 0
    files = sorted((tmp_path / "pairs/input").iterdir())
    (tmp_path / "other/input").mkdir(parents=True)
    (tmp_path / "other/target").symlink_to(tmp_path / "pairs/target")
    for file, name in zip(files, [f.name for f in files[7:] + files[:7]], strict=True):
        (tmp_path / "other/input" / name).symlink_to(file)
    assert here("nll", CKPT, "n=3", "data.root=other", "out=other").code == 0
    own, other = (json.loads((tmp_path / f"{out}/run.json").read_text())["results"] for out in ("own", "other"))
    assert own["log_prob_mean"] > other["log_prob_mean"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample", "input=nowhere"], "there is no such file"),
        (["sample", "input=empty"], "no pictures"),
        (["sample", "input=wrong.npy"], "(5, 5)"),
        (["sample", "input=broken.png"], "broken.png cannot be decoded"),
        (["sample", "each=0"], "at least 1"),
        (["sample", "data=digits"], "these data have none"),
        (["sample", "data.root=nowhere"], "there is no folder"),
        (["sample", "label=3"], "try: input="),
        (["explain"], "tells it nothing"),
        (["diagnose"], "tells it nothing"),
        (["sample", "guidance=cfg"], "drop=0"),
        (["sample", "task=inpaint"], "given a picture"),
        (["nll", "data=digits"], "these data have none"),
    ],
)
def test_what_does_not_fit_is_refused(here, tmp_path, words, sentence):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "wrong.npy", np.zeros((2, 5, 5)))
    (tmp_path / "broken.png").write_bytes((tmp_path / "pairs/input/shape00.png").read_bytes()[:40])
    refusal = here(words[0], CKPT, *words[1:], "out=no")
    assert refusal.code == 2 and sentence in refusal.err and "Traceback" not in refusal.err, refusal.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["task=paired"], "needs data.root"),
        (["task=paired", "data.root=nowhere"], "there is no folder"),
        (["task=paired", "data.root=pairs", "data.input=edges"], "no folder edges/, only input, target"),
        (["task=paired", "data=digits"], "no pairs"),
        (["task=paired", "data.root=pairs", "network=kde"], "network=kde takes no image"),
        (["task=paired", "data.root=pairs", "network.classes=3"], "network.classes=3"),
        (["task=paired", "data.root=pairs", "data.size=9"], "divisible"),
        (["task=paired", "data.root=pairs", "loss=ot_flow", "sde=flow", "prediction=velocity"], "coupling=ot"),
        (["condition=image"], "no pairs"),
    ],
)
def test_training_refuses_what_does_not_fit(here, tmp_path, words, sentence):
    refusal = here("train", *words, "out=no")
    assert refusal.code == 2 and sentence in refusal.err and "Traceback" not in refusal.err, refusal.err
    assert not (tmp_path / "no").exists()
