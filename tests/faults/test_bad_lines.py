"""Sixty wrong command lines over all commands: a code that scripts can rely on, one sentence, nothing left on disk.

tests/commands/test_bad_input.py has two hundred more of training and sampling, by what is wrong with each word.
"""

import shlex
from pathlib import Path

import numpy as np
import pytest
from fault_lines import SMALL
from PIL import Image

FIT = "network=mlp network.width=8 network.blocks=1 preview.every=0 trainer.max_steps=2"
UNET = "network=unet network.channels=8 network.multipliers=[1,1] preview.every=0 trainer.max_steps=2"
PICTURES = f"train data=image_folder data.size=8 {UNET} data.root={{files}}"

# (command line, exit code, what its sentence must hold); {files} is a folder of unfit files, {ckpt} a checkpoint of points
LINES = [
    # typos, of each command
    ("encoed n=3", 2, "'encode'"),
    ("exprot", 2, "'export'"),
    ("nll network=exact splt=test", 2, "'split'"),
    ("evaluate network=exact repeat=3", 2, "'repeats'"),
    ("compare network=exact sampler=[ddim]", 2, "samplers"),
    ("explain network=exact sde=vpe", 2, "'vp'"),
    ("diagnose network=exact checks=[losss]", 2, "'loss'"),
    ("encode network=exact input=missing.npy", 2, "missing.npy"),
    ("interpolate network=exact way=odee", 2, "way"),
    ("import paht=x", 2, "'path'"),
    ("export ckpt={ckpt} weight=raw", 2, "'weights'"),
    # wrong types
    ("nll network=exact likelihood.probes=many", 2, "whole number"),
    ("evaluate network=exact n=few", 2, "whole number"),
    ("compare network=exact nfe=[five]", 2, "nfe"),
    ("explain network=exact n=1.5", 2, "whole number"),
    ("diagnose network=exact times=often", 2, "whole number"),
    ("interpolate network=exact frames=3.5", 2, "whole number"),
    ("encode network=exact n=[4]", 2, "whole number"),
    ("sample network=exact overwrite=perhaps", 2, "true or false"),
    ("train data=moons optim.lr=nan", 2, "optim.lr must be a number"),
    ("train data=moons optim.lr=inf", 2, "optim.lr"),
    ("train data=moons ema.decay=nan", 2, "ema.decay"),
    ("sample network=exact sampler=rk45 sampler.tol=inf", 2, "tol"),
    ("sample network=exact seed=1e400", 2, "seed"),
    # out of range
    ("sample network=exact steps=0", 2, "at least 1"),
    ("sample network=exact steps=-5", 2, "at least 1"),
    ("nll network=exact n=0", 2, "at least 1"),
    ("nll network=exact seed=-1", 2, "at least 0"),
    ("evaluate network=exact repeats=0", 2, "at least 1"),
    ("explain network=exact n=0", 2, "at least"),
    ("diagnose network=exact n=1", 2, "at least"),
    ("interpolate network=exact frames=0", 2, "at least"),
    ("encode network=exact n=-3", 2, "at least 1"),
    ("compare network=exact nfe=[0]", 2, "nfe"),
    ("train data=moons devices=99", 2, "this machine has"),
    ("sample network=exact devices=99", 2, "this machine has"),
    ("sample network=exact batch_size=0", 2, "at least 1"),
    ("sample network=exact n=99999999999999999999", 2, "at most"),
    # impossible combinations
    ("export network=exact", 2, "network"),
    ("import path={files} network=mlp", 2, "network"),
    ("decode network=exact", 2, "encode"),
    ("interpolate network=exact a=seed:1 b=nobody", 2, "nobody"),
    ("evaluate ckpt={ckpt} label=3", 2, "label"),
    ("nll ckpt={ckpt} label=cat", 2, "label"),
    ("sample ckpt={ckpt} guidance=cfg", 2, "guidance"),
    ("compare ckpt={ckpt} cards=[{files}]", 2, "card"),
    # data that are missing or unfit
    ("evaluate data=moons samples=missing.npy", 2, "missing.npy"),
    ("evaluate data=moons samples={files}/text.npy", 2, "text.npy"),
    ("train data=array data.file={files}/none.npy " + FIT, 2, "none.npy"),
    ("train data=array data.file={files}/nan.npy " + FIT, 2, "nan.npy"),
    ("train data=array data.file={files}/words.npy " + FIT, 2, "words.npy"),
    (f"{PICTURES}/none", 2, "no picture"),
    (f"{PICTURES}/broken", 2, "broken.png"),
    (f"{PICTURES}/grüße", 2, "kaputt.png"),
    ("import path={files}", 2, "{files}"),
    ("nll ckpt={files}/text.npy", 3, "text.npy"),
    ("export ckpt={files}/cut.ckpt", 3, "cut.ckpt"),
    # outputs
    ("nll network=exact out={files}/text.npy", 2, "is a file"),
    ("explain network=exact out=/proc/x", 1, "free there"),
    ("export ckpt={ckpt} out={files}/text.npy/run", 1, "free there"),
    ("encode network=exact out=''", 2, "out= is empty"),
    ("train data=moons out=/dev/null", 2, "is a file"),
]  # fmt: skip

# what looks wrong and is not
FITS = {
    "a batch of more than the data": "train data=moons data.n=20 batch_size=64 " + FIT,
    "grey pictures where RGB is usual": f"{PICTURES}/grey",
    "RGBA and palettes as RGB": f"{PICTURES}/rgba",
    "pictures of several sizes": f"{PICTURES}/mixed",
    "a seed of any size": "sample network=exact n=3 steps=1 seed=99999999999999999999999999",
    "letters beyond English ones": "sample network=exact n=3 steps=1 out=läufe/Ørsted",
    "a batch of more than there is to draw": "sample network=exact n=3 steps=1 batch_size=1000",
    "a folder with a name of its own": "sample network=exact n=3 steps=1 'out=\"läufe/mit leer, zeichen\"'",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.npy").write_text("hello")
    np.save(folder / "none.npy", np.zeros((0, 2)))
    np.save(folder / "nan.npy", np.full((40, 2), np.nan))
    np.save(folder / "words.npy", np.array([["a", "b"]] * 40))
    for name in ("none", "broken", "grüße", "grey", "rgba", "mixed"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)

    def picture(*shape):
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    for i in range(12):
        picture(8, 8, 3).save(folder / "broken" / f"{i}.png")
        picture(8, 8, 3).save(folder / "grüße" / f"{i}.png")
        picture(8, 8).save(folder / "grey" / f"{i}.png")
        (picture(8, 8, 4) if i % 2 else picture(8, 8, 3).quantize(16)).save(folder / "rgba" / f"{i}.png")
        picture(8 + i, 20 - i, 3).save(folder / "mixed" / f"{i}.png")
    (folder / "broken" / "broken.png").write_bytes(b"no picture")
    (folder / "grüße" / "kaputt.png").write_bytes((folder / "grüße" / "0.png").read_bytes()[:20])
    return folder


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory, files) -> Path:
    from diffcli.cli import main

    path = tmp_path_factory.mktemp("runs") / "moons"
    assert main(["train", *SMALL, "trainer.max_steps=2", f"out={path}"]) == 0
    found = path / "checkpoints/last.ckpt"
    (files / "cut.ckpt").write_bytes(found.read_bytes()[:-100])
    return found


def on_disk(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize(("line", "code", "expected"), LINES, ids=[line for line, _, _ in LINES])
def test_a_wrong_line(line, code, expected, cli, files, ckpt, tmp_path, injected):
    before = on_disk(tmp_path, files, ckpt.parents[1])
    result = cli(*shlex.split(line.format(files=files, ckpt=ckpt)))
    lines = result.err.splitlines()
    assert result.code == code, result.err
    assert [text.partition(": ")[0] for text in lines] in (["error"], ["error", "try"]), result.err
    assert expected.format(files=files) in result.err
    assert "Error:" not in lines[0], "the name of an exception"
    assert len(lines[0]) < 400
    assert on_disk(tmp_path, files, ckpt.parents[1]) == before
    injected("a wrong command line", "exit code 2, 1 or 3, one sentence, no new file")


@pytest.mark.parametrize("what", FITS)
def test_a_line_that_looks_wrong_and_is_not(what, cli, files, tmp_path, injected):
    words = shlex.split(FITS[what].format(files=files))
    result = cli(*words, *([] if "out=" in words[-1] else [f"out={tmp_path}/run"]))
    assert result.code == 0, result.err
    assert [path.name for path in tmp_path.rglob("run.json")] == ["run.json"]
    injected("a command line that looks wrong and is not", "it works")


def test_there_are_sixty():
    assert len(LINES) >= 60
    assert {line.split()[0] for line, _, _ in LINES} >= {
        *("train", "sample", "nll", "evaluate", "compare", "explain", "diagnose"),
        *("encode", "decode", "interpolate", "import", "export"),
    }
