"""diffcli encode and decode: what comes back is what went in, and another model reads the same latents."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

EXACT = ("network=exact", "data=mixture", "dtype=float64")
TINY = (
    "network.channels=8",
    "network.multipliers=[1,2]",
    "network.attention=[4]",
    "preview.every=0",
    "trainer.max_steps=12",
    "optim.lr=1e-2",
    "optim.warmup=0",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The digits with labels under VP, and under EDM's process without."""
    from diffcli.cli import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "condition=label", f"out={folder}/vp"]) == 0
    assert main(["train", *TINY, "sde=ve", "schedule=edm", f"out={folder}/ve"]) == 0
    return {name: folder / name / "checkpoints/last.ckpt" for name in ("vp", "ve")}


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_encode_then_decode_gives_the_data_back(cli, tmp_path):
    done = cli("encode", *EXACT, "n=20", "steps=200", "out=e")
    assert done.code == 0, done.err
    told = done.out
    x, z, back = (np.load(tmp_path / f"e/{name}.npy") for name in ("inputs", "latents", "reconstructions"))
    assert x.shape == z.shape == (20, 2)
    done = cli("decode", *EXACT, "input=e", "steps=200", "out=d")
    assert done.code == 0, done.err
    assert np.array_equal(np.load(tmp_path / "d/samples.npy"), back)
    error = np.sqrt(np.square(x - back).mean(1))
    found = record(tmp_path / "e")
    trip = found["results"]["round_trip"]
    assert 0 < error.max() < 1e-4
    assert trip["rms"] == pytest.approx(np.sqrt(np.square(error).mean()))
    assert (trip["mean"], trip["worst"], trip["worst_item"]) == (
        pytest.approx(error.mean()),
        error.max(),
        error.argmax(),
    )
    assert trip["relative"] == pytest.approx(trip["rms"] / x.std())
    assert found["results"]["latents"]["norm2_over_d"] == pytest.approx(np.square(z).mean())
    assert (found["steps"], found["nfe"]["mean"]) == (200, 200)
    assert f"worst {error.max():.2g} (item {error.argmax()})" in told


def test_latents_are_a_start_of_sample(cli, tmp_path):
    """z is x(t_max) in prior_std, what `start=` is in x: the same decoding but for alpha at the last time."""
    assert cli("encode", *EXACT, "sde=ve", "n=8", "out=e").code == 0
    np.save(tmp_path / "start.npy", np.load(tmp_path / "e/latents.npy") * 50)  # sigma_max
    asked = ("sample", *EXACT, "sde=ve", "start=start.npy", "sampler=unipc", "steps=50", "out=s")
    assert cli(*asked).code == 0
    assert np.allclose(np.load(tmp_path / "s/samples.npy"), np.load(tmp_path / "e/reconstructions.npy"), atol=1e-9)


def test_another_process_reads_the_same_latents(cli, tmp_path):
    """Of the same data under another SDE the exact model decodes a VP latent to almost the same item: lam apart, the ODEs agree
    up to their priors."""
    assert cli("encode", *EXACT, "n=32", "steps=200", "out=e").code == 0
    assert cli("decode", *EXACT, "sde=subvp", "input=e/latents.npy", "steps=200", "out=d").code == 0
    x, y = np.load(tmp_path / "e/inputs.npy"), np.load(tmp_path / "d/samples.npy")
    assert np.median(np.abs(x - y)) < 0.02


def test_encoding_does_not_depend_on_the_batch(cli, tmp_path, trained):
    for out, n, size in (("a", 37, 64), ("b", 21, 16)):
        asked = ("encode", f"ckpt={trained['vp']}", "label=own", "steps=3", "noised=true")
        assert cli(*asked, f"n={n}", f"batch_size={size}", f"out={out}").code == 0
    a, b = (np.load(tmp_path / out / "latents.npy") for out in "ab")
    assert a.shape == (37, 1, 8, 8)
    assert np.array_equal(a[:21], b)


def test_translation_is_decoding_by_the_other_model(cli, tmp_path, trained):
    done = cli("encode", f"ckpt={trained['vp']}", f"to={trained['ve']}", "n=5", "steps=4", "sampler=heun", "out=e")
    assert done.code == 0, done.err
    asked = ("decode", f"ckpt={trained['ve']}", "input=e", "steps=4", "sampler=heun", "out=d")
    assert cli(*asked).code == 0
    assert np.allclose(np.load(tmp_path / "e/samples.npy"), np.load(tmp_path / "d/samples.npy"), atol=1e-4)
    names = {p.name for p in (tmp_path / "d").iterdir()}
    assert names == {"run.json", "samples.npy", "samples", "grid.png", "translation.png"}
    assert len(list((tmp_path / "d/samples").glob("*.png"))) == 5
    three, two = (Image.open(tmp_path / name).size[1] for name in ("e/reconstructions.png", "d/translation.png"))
    assert three > 1.3 * two  # rows


def test_labels_edit_what_was_encoded(cli, tmp_path, trained):
    """Told the label that it was encoded with an item comes back, told another it does not."""
    asked = (f"ckpt={trained['vp']}", "steps=30", "dtype=float64")
    assert cli("encode", *asked, "label=own", "n=12", "out=e").code == 0
    labels = [int(y) for _, y in _digits(12)]
    for name, label in (("own", labels), ("other", [(y + 1) % 10 for y in labels])):
        done = cli("decode", *asked, "input=e", f"label=[{','.join(map(str, label))}]", f"out={name}")
        assert done.code == 0, done.err
    x, own, other = (np.load(tmp_path / n) for n in ("e/inputs.npy", "own/samples.npy", "other/samples.npy"))
    assert np.array_equal(own, np.load(tmp_path / "e/reconstructions.npy"))
    assert np.abs(own - x).max() < 0.2 * np.abs(other - x).max()


def test_the_other_model_is_told_nothing(cli, tmp_path, trained):
    asked = ("encode", f"ckpt={trained['ve']}", "dry_run=true")
    assert "is conditioned on its label: what follows is of none" in cli(*asked, f"to={trained['vp']}").out
    content = torch.load(trained["vp"], weights_only=True)
    content["config"]["drop"] = 0.0
    torch.save(content, tmp_path / "told.ckpt")
    done = cli(*asked, "to=told.ckpt")
    assert done.code == 2
    assert "told.ckpt was always told its label" in done.err


def _digits(n):
    from diffcli.data.digits import Digits

    items = Digits().split("test")
    return [items[i] for i in range(n)]


def test_decode_takes_the_newest_encode_run(cli, tmp_path):
    for n in (3, 5):
        assert cli("encode", *EXACT, f"n={n}", "steps=2").code == 0
    done = cli("decode", *EXACT, "n=4", "steps=2", "out=d")
    assert done.code == 0, done.err
    assert len(np.load(tmp_path / "d/samples.npy")) == 4
    assert record(tmp_path / "d")["config"]["input"].endswith("latents.npy")


def test_pictures_of_the_user_are_encoded(cli, tmp_path, trained):
    (tmp_path / "mine").mkdir()
    for i in range(2):
        Image.fromarray(np.full((20, 30), 100 * i, np.uint8)).save(tmp_path / f"mine/{i}.png")
    done = cli("encode", f"ckpt={trained['ve']}", "input=mine", "steps=3", "out=e")
    assert done.code == 0, done.err
    x = np.load(tmp_path / "e/inputs.npy")
    assert np.allclose(x, 16 / 255 * np.array([0.0, 100.0])[:, None, None, None] * np.ones((1, 1, 8, 8)))


def test_nothing_is_measured_of_a_constant(cli, tmp_path):
    np.save(tmp_path / "same.npy", np.zeros((2, 2)))
    assert cli("encode", *EXACT, "input=same.npy", "out=e").code == 0
    assert record(tmp_path / "e")["results"]["round_trip"]["relative"] is None


def test_dry_run_writes_nothing(cli, tmp_path):
    for command in (("encode",), ("decode", "input=z.npy"), ("interpolate",), ("interpolate", "way=stochastic")):
        np.save(tmp_path / "z.npy", np.zeros((3, 2)))
        done = cli(*command, *EXACT, "dry_run=true", "out=d")
        assert done.code == 0, done.err
        assert done.out.startswith("would")
        assert not (tmp_path / "d").exists()


BAD = {
    "sampler sde": ("encode {exact} sampler=ancestral", "only an ODE", "dpm3"),
    "sampler one way": ("encode {exact} sampler=euler_maruyama sampler.eta=0", "from noise to data alone", "dpm3"),
    "input and split": ("encode {exact} input=z2.npy split=val", "split=", "one of the two"),
    "input shape": ("encode {exact} input=z3.npy", "(3,)", ""),
    "input nan": ("encode {exact} input=nan.npy", "not finite", ""),
    "own without": ("encode ckpt={ve} label=own", "takes no label", ""),
    "own of other data": ("encode {told} data.labels=y.npy", "labels are 5, 6, 7, …, the model knows 0, 1", "label="),
    "own of no data": ("encode {told}", "have no labels", "label="),
    "to shape": ("encode {exact} to={ve}", "(1, 8, 8)", "one shape"),
    "decode nothing": ("decode {exact}", "no encode run", "diffcli encode"),
    "decode shape": ("decode {exact} input=z3.npy", "(3,)", "the model takes (2,)"),
    "decode folder": ("decode {exact} input=empty", "no latents.npy", ""),
    "decode picture": ("decode {exact} input=a.png", "no .npy of latents", "diffcli encode"),
    "one end": ("interpolate {exact} a=test:0", "b= the other", "b="),
    "counts": ("interpolate {exact} a=[1,2] b=[1,2,3]", "2 items and b= 3", ""),
    "no item": ("interpolate {exact} a=test:99999999 b=1", "the split has", ""),
    "empty": ("interpolate {exact} a=[] b=1", "names no item", ""),
    "nan": ("interpolate {exact} a=nan.npy b=1", "not finite", ""),
    "frames": ("interpolate {exact} frames=1", "at least 2", ""),
    "t of ode": ("interpolate {exact} t=0.3", "way=stochastic", ""),
    "noised of stochastic": ("interpolate {exact} way=stochastic noised=true", "way=ode", ""),
    "t 0": ("interpolate {exact} way=stochastic t=0", "t must lie above", "t="),
    "t 2": ("interpolate {exact} way=stochastic t=2", "at most 1", ""),
    "sde for ode": ("interpolate {exact} sampler=ancestral", "only an ODE", "way=stochastic"),
    "one level": ("interpolate {exact} way=stochastic sampler=langevin", "one noise level", "ancestral"),
    "guidance": ("interpolate {exact} guidance=cfg", "none is given", "label="),
    "posterior": ("encode {exact} guidance=posterior", "guidance", ""),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_input(cli, tmp_path, trained, row):
    np.save(tmp_path / "z2.npy", np.zeros((3, 2)))
    np.save(tmp_path / "z3.npy", np.zeros((3, 3)))
    np.save(tmp_path / "digits.npy", np.zeros((3, 1, 8, 8)))
    np.save(tmp_path / "y.npy", np.array([5, 6, 7]))
    np.save(tmp_path / "nan.npy", np.full((3, 2), np.nan))
    np.save(tmp_path / "one.npy", np.float64(3))
    (tmp_path / "bad.npy").write_text("no array")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    line, sentence, hint = BAD[row]
    told = f"ckpt={trained['vp']} data=array data.file=digits.npy label=own"
    words = line.format(exact=" ".join(EXACT[:2]), ve=trained["ve"], told=told).split()
    done = cli(*words)
    assert done.code == 2, done.out + done.err
    assert sentence in done.err, done.err
    assert hint in done.err, done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "outputs").exists()


def test_a_checkpoint_that_is_none_is_code_3(cli, tmp_path):
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    assert cli("encode", *EXACT, "to=bad.ckpt").code == 3
    assert cli("interpolate", "ckpt=bad.ckpt").code == 3


def test_a_model_of_one_level_has_no_latents(cli, tmp_path):
    small = ("data=moons", "network=mlp", "network.width=8", "preview.every=0", "trainer.max_steps=2")
    assert cli("train", *small, "levels=one", "level.sigma=0.3", "prediction=score", "out=one").code == 0
    done = cli("interpolate", "ckpt=one/checkpoints/last.ckpt")
    assert done.code == 2
    assert "one noise level" in done.err


def test_what_is_not_finite_is_code_4(cli, tmp_path):
    np.save(tmp_path / "far.npy", np.full((3, 2), 1e200))
    done = cli("encode", *EXACT, "input=far.npy", "dtype=float32", "out=e")
    assert done.code == 4, done.err
    assert torch.get_default_dtype() == torch.float32
    assert record(tmp_path / "e")["status"] == "failed"
