"""`diffcli sample task=…`: each inverse problem from its inputs to its picture and its figures, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.cli import main
from diffcli.commands.own_file import OwnFunction
from diffcli.data.digits import Digits

SMALL = ("network.channels=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1", "preview.every=0")
FEW = ("steps=3", "inputs=2", "each=3")
EXACT = ("network=exact", "data=mixture", "steps=12", "dtype=float64")


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A model of the digits, 8x8, 17 levels."""
    folder = tmp_path_factory.mktemp("grey")
    assert main(["train", *SMALL, f"out={folder}", "trainer.max_steps=20", "optim.lr=1e-2", "optim.warmup=0"]) == 0
    return folder / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    """A model of pictures of 8x8 in colour."""
    folder, draw = tmp_path_factory.mktemp("rgb"), np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(20):
        x = draw.integers(0, 256, (2, 2, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(x).save(folder / f"pictures/{i:02d}.png")
    data = ("data=image_folder", f"data.root={folder / 'pictures'}", "data.size=8")
    assert main(["train", *SMALL, *data, f"out={folder / 'run'}", "trainer.max_steps=5", "batch_size=8"]) == 0
    return folder / "run/checkpoints/last.ckpt"


def results(folder) -> dict:
    return json.loads((folder / "run.json").read_text())["results"]


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (("task=inpaint",), (1, 8, 8)),
        (("task=superres", "task.factor=2"), (1, 4, 4)),
        (("task=deblur",), (1, 8, 8)),
        (("task=denoise", "guidance.method=pigdm"), (1, 8, 8)),
    ],
    ids=lambda x: x[0] if isinstance(x[0], str) else "",
)
def test_a_task_from_its_inputs_to_its_picture(cli, tmp_path, grey, task, shape):
    done = cli("sample", f"ckpt={grey}", *task, *FEW, "out=run")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    x = np.load(run / "samples.npy")
    assert x.shape == (6, 1, 8, 8)
    off = ((x < -1.6) | (x > 17.6)).mean()  # a tenth of the range outside 0..16
    assert ("values lie far outside the levels 0..16" in done.err) == (off > 0.01)
    assert np.load(run / "measured.npy").shape == (2, *shape)
    assert len(list((run / "samples").glob("*.png"))) == 6
    with Image.open(run / "inverse.png") as picture:  # original, measured, 3 samples, mean, sd
        assert picture.width > 7 * 96 and picture.height > 2 * 96
    found = results(run)
    assert (found["n"], found["inputs"], found["each"]) == (6, 2, 3)
    assert len(found["psnr_of_mean"]) == 2
    assert "data fidelity" in done.out and "dB" in done.out
    config = json.loads((run / "run.json").read_text())["config"]
    assert config["task"]["_target_"].startswith("diffcli.diffusion.inverse.")
    assert config["guidance"]["_target_"].endswith(".Posterior")


def test_colours(cli, tmp_path, rgb):
    """A grey picture is taken for the measurement; a model of grey ones has nothing to colour."""
    done = cli("sample", f"ckpt={rgb}", "task=colorize", *FEW, "out=run")
    assert done.code == 0, done.err
    y, x = np.load(tmp_path / "run/measured.npy"), np.load(tmp_path / "run/samples.npy")
    assert y.shape == (2, 1, 8, 8) and x.shape == (6, 3, 8, 8)
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "grey.png")
    done = cli("sample", f"ckpt={rgb}", "task=colorize", "steps=3", "input=grey.png", "out=own")
    assert done.code == 0, done.err
    assert "taken for one" in done.out
    assert np.allclose(np.load(tmp_path / "own/measured.npy"), 77, atol=1e-3)
    assert np.load(tmp_path / "own/samples.npy").shape == (8, 3, 8, 8)
    assert "psnr_of_mean" not in results(tmp_path / "own") and "original" not in results(tmp_path / "own")["fidelity"]


def test_known_pixels_are_kept_exactly(cli, tmp_path, grey):
    """With replacement and last=denoise; the others vary, from sample to sample."""
    done = cli("sample", f"ckpt={grey}", "task=inpaint", "guidance.method=replacement", *FEW, "last=denoise", "out=run")
    assert done.code == 0, done.err
    x = np.load(tmp_path / "run/samples.npy").reshape(2, 3, 8, 8)
    test = Digits().split("test").__getitems__(range(2))[0].numpy().reshape(2, 1, 8, 8)
    hidden = np.zeros((8, 8), bool)
    hidden[2:6, 2:6] = True
    assert np.abs(x - test)[:, :, ~hidden].max() < 1e-4
    assert x.std(1)[:, hidden].min() > 1e-3
    y = np.load(tmp_path / "run/measured.npy").reshape(2, 8, 8)
    assert np.allclose(y[:, hidden], 8)  # the middle of the levels: nothing of what was there
    assert results(tmp_path / "run")["fidelity"]["mean"] < 1e-4


def test_samples_of_an_exact_model_fit_the_measurement_as_the_truth_does(cli, tmp_path):
    """A(x) - y over the noise's sd: 1 of the true items; of posterior samples too on average of one known coordinate or so."""
    done = cli(
        "sample",
        *EXACT,
        "task=inpaint",
        "task.known=[0]",
        "task.noise=0.3",
        "inputs=40",
        "each=20",
        "steps=30",
        "out=run",
    )
    assert done.code == 0, done.err
    fit = results(tmp_path / "run")["fidelity"]
    assert fit["unit"] == "noise"
    # the mean of |n|, n normal, is sqrt(2/pi) = 0.80, its standard error over 40 inputs 0.1
    assert abs(fit["original"] - 0.8) < 0.3 and abs(fit["mean"] - 0.8) < 0.3


@pytest.mark.heavy
def test_a_sample_depends_on_the_seed_and_its_indices_alone(cli, tmp_path):
    """Not on batches or the number of inputs; so does the measurement's noise."""
    words = ("sample", *EXACT[:2], "dtype=float64", "steps=4", "task=denoise", "each=5")
    for out, more in (("a", ("inputs=8",)), ("b", ("inputs=3", "batch_size=4")), ("c", ("inputs=8", "batch_size=16"))):
        done = cli(*words, *more, f"out={out}")
        assert done.code == 0, done.err
    a, b, c = (np.load(tmp_path / name / "samples.npy") for name in "abc")
    assert a.shape == (40, 2) and np.array_equal(a[:15], b) and np.array_equal(a, c)
    ys = [np.load(tmp_path / name / "measured.npy") for name in "ab"]
    assert np.array_equal(ys[0][:3], ys[1])
    assert cli(*words, "seed=1", "out=d").code == 0
    assert not np.isclose(np.load(tmp_path / "d/measured.npy"), ys[0][:4]).any()


OWN = {
    "linear.py": "def measure(x):\n    return x[:, :1] + x[:, 1:]\n",
    "square.py": "class operator:\n    def __call__(self, x):\n        return x.square().sum(1, keepdim=True)\n",
}


@pytest.mark.parametrize(("name", "more"), [("linear.py", ()), ("square.py", ("guidance.method=dps",))])
def test_an_operator_of_ones_own(cli, tmp_path, name, more):
    (tmp_path / name).write_text(OWN[name])
    done = cli(
        "sample",
        *EXACT,
        "task=operator",
        f"task.file={name}",
        *more,
        "task.noise=0.2",
        "inputs=6",
        "steps=30",
        "out=run",
    )
    assert done.code == 0, done.err
    assert np.load(tmp_path / "run/measured.npy").shape == (6, 1)
    assert results(tmp_path / "run")["fidelity"]["mean"] < 3  # 40 of samples that were told nothing


@pytest.mark.heavy
def test_processes_share_an_operator_of_ones_own(cli, tmp_path):
    (tmp_path / "op.py").write_text(OWN["linear.py"])
    words = ("sample", *EXACT, "task=operator", "task.file=op.py", "inputs=6", "batch_size=16")
    for devices in (1, 2):
        done = cli(*words, f"devices={devices}", f"out=on{devices}")
        assert done.code == 0, done.err
    assert np.array_equal(*(np.load(tmp_path / f"on{devices}/samples.npy") for devices in (1, 2)))


def test_a_function_is_read_again_where_it_is_sent(tmp_path):
    (tmp_path / "op.py").write_text(OWN["square.py"])
    sent = pickle.loads(pickle.dumps(OwnFunction(str(tmp_path / "op.py"))))
    assert sent(torch.tensor([[1.0, 2.0]])).tolist() == [[5.0]]


def test_measurements_of_ones_own(cli, tmp_path, grey):
    """measured.npy is taken up again; a small picture is a measurement by its size."""
    words = ("sample", f"ckpt={grey}", "task=superres", "task.factor=2", "steps=3", "each=2")
    assert cli(*words, "inputs=3", "out=a").code == 0
    done = cli(*words, "input=a/measured.npy", "out=b")
    assert done.code == 0, done.err
    assert "taken for one" in done.out
    a, b = (np.load(tmp_path / out / "samples.npy") for out in "ab")
    assert np.allclose(a, b, atol=1e-3)
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "small.png")
    done = cli(*words, "input=small.png", "out=c")
    assert done.code == 0, done.err
    assert "taken for one" in done.out and np.allclose(np.load(tmp_path / "c/measured.npy"), 16)
    done = cli(
        "sample", f"ckpt={grey}", "task=deblur", "steps=2", "each=2", "task.measured=true", "input=small.png", "out=d"
    )
    assert done.code == 0, done.err
    assert results(tmp_path / "d")["inputs"] == 1 and "psnr_of_mean" not in results(tmp_path / "d")


def test_a_mask_of_ones_own(cli, tmp_path, grey):
    """White is unknown in a mask, transparent in a picture."""
    a = np.full((8, 8, 4), 200, np.uint8)
    a[..., 3] = 255
    a[:3, :, 3] = 0
    Image.fromarray(a, "RGBA").save(tmp_path / "holes.png")
    Image.fromarray(255 - a[..., 3]).save(tmp_path / "mask.png")
    words = ("sample", f"ckpt={grey}", "task=inpaint", "input=holes.png", "steps=2", "each=2", "last=denoise")
    for out, mask in (("a", "alpha"), ("b", "mask.png")):
        done = cli(*words, f"task.mask={mask}", "guidance.method=replacement", f"out={out}")
        assert done.code == 0, done.err
    x, y = (np.load(tmp_path / out / "samples.npy") for out in "ab")
    assert np.array_equal(x, y)
    assert np.abs(x[:, :, 3:] - 200 * 16 / 255).max() < 1e-4 and np.abs(x[:, :, :3] - 200 * 16 / 255).min() > 1e-4


def test_repaint_and_a_trajectory(cli, tmp_path, grey):
    """The sampler's evaluations are counted as they are: 3 steps of 2 passes."""
    more = ("guidance.method=replacement", "sampler=resample", "sampler.resamples=2", "trajectory=true")
    done = cli("sample", f"ckpt={grey}", "task=inpaint", "task.noise=0.1", *more, *FEW, "out=run")
    assert done.code == 0, done.err
    y = np.load(tmp_path / "run/measured.npy")[0, 0]
    assert np.allclose(y[2:6, 2:6], 8) and np.ptp(y[0]) > 0.1  # noise on what is known, and nothing where nothing is
    assert json.loads((tmp_path / "run/run.json").read_text())["nfe"]["mean"] == 3 * 2 + 1
    assert (tmp_path / "run/trajectory.gif").is_file()
    assert "would draw 6 samples" in cli("sample", f"ckpt={grey}", "task=inpaint", *FEW, "dry_run=true").out


BAD = [  # words, what is said, what to try
    ("task=inpaint guidance=none", "guidance=none knows nothing of a measurement", "guidance=posterior"),
    ("task=inpaint n=3", "draws `each` samples of each input", "each=8"),
    ("task=inpaint start=x.npy", "start= does not go with task=inpaint", ""),
    ("task=inpaint guidance.method=repaint", "RePaint", "guidance.method=replacement sampler=resample"),
    ("task=inpaint task.mask=sqare", "did you mean 'square'?", "task.mask="),
    ("task=inpaint task.mask=left", "task.mask=left is of pictures", "task.known=[0]"),
    ("task=inpaint task.known=[2]", "coordinates 0 to 1, and no 2", ""),
    ("task=inpaint task.known=[0,1]", "everything is known", ""),
    ("task=inpaint task.known=[]", "nothing is known", ""),
    ("task=inpaint task.size=1.5", "task.size must lie between 0 and 1", ""),
    ("task=inpaint task.noise=-1", "task.noise must be at least 0", ""),
    ("task=inpaint task.noise=much", "task.noise must be a number", ""),
    ("task=inpaint task.mask=alpha", "transparent part of a picture", "input=FILE.png"),
    ("task=inpaint task.measured=true", "there is none", "input=FILE"),
    ("task=inpaint input=nowhere.png", "there is no such file", "FOLDER"),
    ("task=inpaint input=text.npy", "not a readable .npy", ""),
    ("task=inpaint input=wide.npy", "items of shape (3,), not (2,)", ""),
    ("task=inpaint input=nan.npy", "is not finite", ""),
    ("task=inpaint input=points.npy inputs=2", "input= names your own", "one of the two"),
    ("task=colorize", "pictures (C, H, W)", "task=inpaint"),
    ("task=superres", "pictures (C, H, W)", ""),
    ("task=deblur", "pictures (C, H, W)", ""),
    ("task=denoise guidance.method=replacement", "for masks", ""),
    ("task=operator", "task=operator needs task.file", "task.file="),
    ("task=operator task.file=nowhere.py", "there is no such file", "measure(x)"),
    ("task=operator task.file=bad.py", "bad.py, line 2: SyntaxError", ""),
    ("task=operator task.file=raises.py", "raises.py, line 3: KeyError: 'a'", ""),
    ("task=operator task.file=empty.py", "no function measure(x)", "def measure"),
    ("task=operator task.file=numbers.py", "numpy", ""),
    ("task=operator task.file=square.py", "not linear", ""),
    ("task=inpant", "did you mean 'inpaint'?", "task="),
    ("task=classifier", "task=classifier is of train, not of sample", "diffcli train task=classifier"),
    ("guidance=posterior", "there is none", "task=inpaint"),
    ("inputs=3", "a task measures", "task=inpaint"),
    ("each=3", "there are no inputs", "task=inpaint"),
    ("task.mask=square", "task.mask is a setting of task=inpaint", "task=inpaint"),
]


@pytest.mark.parametrize(("words", "told", "hint"), BAD, ids=[row[0] for row in BAD])
def test_what_does_not_go_is_said_in_a_sentence(cli, tmp_path, words, told, hint):
    for name, text in OWN.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bad.py").write_text("x = 1\ndef measure(x)\n")
    (tmp_path / "raises.py").write_text("def measure(x):\n    y = {}\n    return y['a']\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "numbers.py").write_text("def measure(x):\n    return x.numpy()[:, :1]\n")
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save(tmp_path / "wide.npy", np.zeros((4, 3)))
    np.save(tmp_path / "points.npy", np.zeros((4, 2)))
    np.save(tmp_path / "nan.npy", np.full((4, 2), np.nan))
    done = cli("sample", "network=exact", "data=mixture", *words.split(), "out=run")
    assert done.code == 2, done.err
    assert told in done.err, done.err
    assert hint in done.err
    assert "Traceback" not in done.err and not (tmp_path / "run").exists()


def test_tasks_are_those_of_their_command(cli):
    assert "task=inpaint is of sample, not of train" in cli("train", "task=inpaint").err
    shown = {command: cli(command, "--help").out for command in ("train", "sample")}
    for task, command in (("inpaint", "sample"), ("operator", "sample"), ("paired", "train")):
        other = "sample" if command == "train" else "train"
        assert f"\n    {task} " in shown[command] and f"\n    {task} " not in shown[other]


def test_a_task_of_ones_own(cli, tmp_path):
    """A yaml and a class in a folder of one's own."""
    (tmp_path / "mine/task").mkdir(parents=True)
    text = "# mine\n# @command sample\ndefaults:\n  - override /guidance@_global_.guidance: posterior\n  - _self_\n"
    text += "_target_: diffcli.diffusion.inverse.Identity\nnoise: 0.2\nmeasured: false\n"
    (tmp_path / "mine/task/haze.yaml").write_text(text)
    done = cli("sample", "--config-dir", str(tmp_path / "mine"), *EXACT, "task=haze", "out=run")
    assert done.code == 0, done.err
    assert results(tmp_path / "run")["task"] == "haze"
