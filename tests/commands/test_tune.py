"""diffcli tune: what it finds is in the checkpoint, whose rest stays as it is; sampling takes it or says what there is."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from diffcli import checkpoint
from diffcli.cli import main
from diffcli.commands import tune
from diffcli.commands.folder_lock import FolderLock
from diffcli.commands.partial import Partial
from diffcli.diffusion.grid import Karras, UniformLam
from diffcli.diffusion.samplers import DDIM, Deis
from diffcli.diffusion.samplers.tuned import TunedSampler
from diffcli.diffusion.tuning import Fit, Tuned
from diffcli.errors import CheckpointError
from diffcli.sampling import draw_samples

TINY = ("data=moons", "data.n=100", "trainer.max_steps=2", "batch_size=16", "network.width=8", "network.blocks=1")
CKPT = "run/checkpoints/last.ckpt"
ENTRY = {
    "name": "deis", "asked": "", "sampler": {}, "grid": {}, "fit": {}, "steps": 2, "nfe": 7, "before": 0.2, "after": 0.1,
    "times": torch.tensor([1.0, 0.5, 0.1]).double(), "weights": None,
    "alpha": torch.ones(3).double(), "sigma": torch.ones(3).double(),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ("condition=label", "preview.every=0", "trainer.limit_val_batches=0", f"out={folder}")
    assert main(["train", *TINY, *words]) == 0
    return folder


@pytest.fixture
def model(trained, cli, tmp_path):
    """A run in the folder of the command line, whose checkpoint may be changed."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / CKPT


def quick(bound, sampler, grid, steps, starts, *, held, what, progress, batch, rounds=1):
    """In the place of a fit: EDM's times, and as weights those of DDIM's steps with the first reading alone; the rest are zeros."""
    for _ in progress(range(rounds)):
        pass
    sde = bound(range(1)).sde
    times = Karras()(sde, steps)
    weights = torch.zeros(steps, steps + 1, dtype=torch.float64)
    weights[:, 0] = 0.5
    return Fit(Tuned(times, weights if what == "all" else None), 0.5, 0.25, rounds * steps)


@pytest.fixture
def fitted(monkeypatch):
    """What the fits were asked."""
    asked = []

    def noted(*args, **settings):
        asked.append((args, settings))
        return quick(*args, **settings)

    monkeypatch.setattr(tune, "fit", noted)
    return asked


def same(a, b):
    if torch.is_tensor(a):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


def record(tmp_path, out):
    return json.loads((tmp_path / out / "run.json").read_text())


@pytest.mark.heavy
def test_what_is_found_is_kept_and_all_else_stays(cli, model, tmp_path, fitted):
    os.utime(model, ns=(10**18, 10**18))
    before = torch.load(model, weights_only=True)
    done = cli(
        "tune", f"ckpt={CKPT}", "steps=[3,2]", "what=times", "sampler=deis", "sampler.order=2", "out=t", "n=5", "held=4"
    )
    assert done.code == 0, done.err
    assert [args[3] for args, _ in fitted] == [2, 3]
    after = torch.load(model, weights_only=True)
    found = after.pop("tuned")
    assert same(before, after)
    assert model.stat().st_mtime_ns == 10**18  # no newer model than it was
    assert [(e["steps"], e["weights"], e["name"], e["before"], e["after"]) for e in found] == [
        (2, None, "deis", 0.5, 0.25),
        (3, None, "deis", 0.5, 0.25),
    ]
    results = record(tmp_path, "t")["results"]["fits"]
    assert [(r["steps"], r["share"]) for r in results] == [(2, 0.5), (3, 0.5)]
    assert (tmp_path / "t/tune.csv").read_text().startswith("steps,before,after,share,nfe,seconds\n2,0.5,0.25,0.5,2,")
    assert "sampler=deis grid=tuned steps=3" in done.out
    # sample walks these times
    words = ("sampler=deis", "sampler.order=2", "grid=tuned", "n=4")
    assert cli("sample", f"ckpt={CKPT}", *words, "steps=2", "out=s").code == 0
    denoiser = checkpoint.load_denoiser(model)
    times = Karras()(denoiser.sde, 2)
    (drawn,) = draw_samples(denoiser, Deis(2), times, (2,), 4, 0)
    transform = checkpoint_transform(model)
    assert np.array_equal(np.load(tmp_path / "s/samples.npy"), transform.decode(drawn.x).numpy())
    # the most that fit, and without a wish the most there are
    for wish, steps in (("nfe=2", 2), ("nfe=40", 3), ("png=false", 3)):
        assert cli("sample", f"ckpt={CKPT}", *words, wish, f"out=w{steps}", "overwrite=true").code == 0
        assert record(tmp_path, f"w{steps}")["steps"] == steps
    assert cli("evaluate", f"ckpt={CKPT}", *words, "nfe=9", "repeats=1", "neighbours=false", "out=e").code == 0
    assert record(tmp_path, "e")["steps"] == 3


def checkpoint_transform(path):
    from diffcli.commands.build import build

    return build(checkpoint.read(path)["config"]["data"], "data").transform


@pytest.mark.heavy
def test_a_tuned_walk_has_its_own_times(cli, model, tmp_path, fitted):
    assert cli("tune", f"ckpt={CKPT}", "steps=[2,4]", "out=t").code == 0
    done = cli("sample", f"ckpt={CKPT}", "sampler=tuned", "nfe=3", "n=4", "out=s")
    assert done.code == 0, done.err
    denoiser, (entry, _) = checkpoint.load_denoiser(model), checkpoint.read(model)["tuned"]
    walk = TunedSampler({2: (entry["times"], entry["weights"])})
    (drawn,) = draw_samples(denoiser, walk, entry["times"], (2,), 4, 0)
    expected = checkpoint_transform(model).decode(drawn.x).numpy()
    assert np.array_equal(np.load(tmp_path / "s/samples.npy"), expected)
    done = cli("compare", f"ckpt={CKPT}", "samplers=[tuned,ddim,heun]", "nfe=[1,3,6]", "n=20", "endpoints=8", "out=c")
    assert done.code == 0, done.err
    cells = {(c["sampler"], c["budget"]): c["steps"] for c in record(tmp_path, "c")["results"]["cells"]}
    assert {key: steps for key, steps in cells.items() if key[0] == "tuned"} == {("tuned", 3): 2, ("tuned", 6): 4}


UNFIT = {
    ("sampler=tuned", "steps=3"): "2, 4",
    ("sampler=tuned", "nfe=1"): "the 2 steps that were tuned take 2",
    ("sampler=tuned", "grid=karras"): "grid= left out",
    ("sampler=deis", "grid=tuned"): "for sampler=deis with these settings; there is sampler=tuned steps=2|4",
    ("sampler=rk45", "grid=tuned"): "has not been tuned for sampler=rk45",
    ("sampler=tuned", "sde=ve"): "another process",
    ("sampler=pc", "sampler.predictor=tuned"): "what was tuned is a whole walk",
}


def test_what_does_not_fit_is_refused(cli, model, fitted):
    assert cli("tune", f"ckpt={CKPT}", "steps=[2,4]", "out=t").code == 0
    for words, said in UNFIT.items():
        done = cli("sample", f"ckpt={CKPT}", *words, "out=s")
        assert (done.code, "Traceback" in done.err) == (2, False), done.err
        assert said in done.err, done.err
        assert not os.path.exists("s")


@pytest.mark.heavy
def test_an_interrupted_run_goes_on_after_a_tune_unless_its_own_fit_is_another(
    cli, model, tmp_path, fitted, monkeypatch
):
    """The file is another one then, and the model the same."""
    assert cli("tune", f"ckpt={CKPT}", "steps=2", "out=t").code == 0
    words = ("sample", f"ckpt={CKPT}", "n=40", "batch_size=16", "png=false", "steps=2")
    walks = {"free": "sampler=ddim", "own": "sampler=tuned"}

    def stop(self, **columns):
        append(self, **columns)
        raise KeyboardInterrupt

    append = Partial.append
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "append", stop)
        for out, walk in walks.items():
            assert cli(*words, walk, f"out={out}").code == 130
    assert cli(*words, walks["free"], "out=whole").code == 0
    assert cli("tune", f"ckpt={CKPT}", "steps=3", "out=u").code == 0
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    for out, walk in walks.items():
        done = cli(*words, walk, f"out={out}", "resume=auto")
        assert done.code == 0 and "going on at sample 16 of 40" in done.out, done.err
    assert (tmp_path / "free/samples.npy").read_bytes() == (tmp_path / "whole/samples.npy").read_bytes()
    content = checkpoint.read(model)
    content["tuned"][0]["weights"] *= 1.1
    checkpoint.write(content, model)
    done = cli(*words, walks["own"], "out=other", "resume=auto")
    assert done.code == 2 and "another fit of diffcli tune: its content has changed" in done.err, done.err


@pytest.mark.heavy
def test_a_model_that_was_not_tuned_says_how(cli, model):
    for words in (("sampler=tuned",), ("sampler=dpmpp_2m", "grid=tuned")):
        done = cli("sample", f"ckpt={CKPT}", *words)
        assert done.code == 2
        assert "has not been tuned" in done.err
        assert "try: diffcli tune" in done.err
    for words in (("sampler=tuned",), ("grid=tuned",)):
        done = cli("train", *TINY, *words, "out=new")
        assert (done.code, "not been tuned" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("steps=[]",), "names no number"),
        (("steps=[0,3]",), "between 1 and 100"),
        (("steps=101",), "between 1 and 100"),
        (("steps=many",), "steps must be"),
        (("sampler=ancestral",), "sampler of the ODE"),
        (("sampler=rk45",), "sampler of the ODE"),
        (("sampler=tuned",), "tuned"),
        (("grid=tuned",), "tuned"),
        (("what=weights",), "what cannot be 'weights'"),
        (("held=0",), "held must be at least 1"),
        (("n=null",), "n must be"),
        (("devices=2",), "one device"),
        (("network=exact",), "network"),
        (("ckpt=nowhere.ckpt",), "there is no checkpoint"),
    ],
)
def test_bad_settings_are_refused_before_any_work(cli, model, fitted, words, said):
    done = cli("tune", f"ckpt={CKPT}", *words)
    assert (done.code, "Traceback" in done.err) == (2, False), done.err
    assert said in done.err
    assert not fitted
    assert not os.path.exists("outputs")


def test_it_goes_on_where_it_was_interrupted(cli, model, tmp_path, fitted, monkeypatch):
    """Ctrl-C in the second fit: the first is there, the file is whole, and the same command fits what is left."""

    def interrupted(*args, **settings):
        if args[3] == 3:
            raise KeyboardInterrupt
        return quick(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "fit", interrupted)
        done = cli("tune", f"ckpt={CKPT}", "steps=[2,3]", "out=t")
    assert done.code == 130
    assert record(tmp_path, "t")["status"] == "interrupted"
    assert [e["steps"] for e in checkpoint.read(model)["tuned"]] == [2]
    done = cli("tune", f"ckpt={CKPT}", "steps=[2,3]", "out=u")
    assert done.code == 0
    assert "2 steps: there already" in done.out
    assert [args[3] for args, _ in fitted] == [3]
    # other settings take its place
    assert cli("tune", f"ckpt={CKPT}", "steps=2", "n=9", "out=v").code == 0
    assert [(e["steps"], e["fit"]["n"]) for e in checkpoint.read(model)["tuned"]] == [(3, 64), (2, 9)]


def test_a_checkpoint_that_changes_meanwhile_is_left_alone(cli, model, tmp_path, monkeypatch):
    content = torch.load(model, weights_only=True)

    def trains(*args, **settings):
        content["state_dict"] = {k: v + 1 for k, v in content["state_dict"].items()}
        checkpoint.write(content, model)
        return quick(*args, **settings)

    monkeypatch.setattr(tune, "fit", trains)
    done = cli("tune", f"ckpt={CKPT}", "steps=2", "out=t")
    assert (done.code, "other weights" in done.err) == (1, True), done.err
    assert "tuned" not in checkpoint.read(model)
    lock = FolderLock(model.parent.parent)
    done = cli("tune", f"ckpt={CKPT}", "steps=2", "out=u")
    lock.free()
    assert (done.code, "is in use" in done.err) == (2, True), done.err


def test_a_fit_that_is_none_does_not_cost_the_checkpoint(cli, model, monkeypatch):
    def astray(*args, **settings):
        found = quick(*args, **settings)
        return found._replace(tuned=found.tuned._replace(weights=found.tuned.weights * torch.nan))

    monkeypatch.setattr(tune, "fit", astray)
    before = model.read_bytes()
    done = cli("tune", f"ckpt={CKPT}", "steps=2", "out=t")
    assert (done.code, "is not kept" in done.err) == (4, True), done.err
    assert model.read_bytes() == before


@pytest.mark.heavy
def test_each_row_of_the_starts_keeps_its_label(cli, model, fitted):
    words = ("label=all", "guidance=cfg", "guidance.scale=2", "n=5", "held=4", "batch_size=16", "seed=3")
    assert cli("tune", f"ckpt={CKPT}", "steps=2", *words, "out=t").code == 0
    ((bound, _, _, _, starts), settings) = fitted[0]
    assert len(starts) == 9
    assert settings["held"] == 4
    assert bound(range(3, 7)).given["label"].tolist() == [1, 0, 1, 0]
    # starts are no sample's
    sample = next(
        iter(draw_samples(checkpoint.load_denoiser(model), DDIM(), UniformLam()(bound(range(1)).sde, 1), (2,), 9, 3))
    )
    assert not torch.isclose(starts[:, None], sample.x).all(-1).any()
    # it is for this guidance
    assert cli("sample", f"ckpt={CKPT}", "sampler=tuned", *words[:3], "n=4", "out=s").code == 0
    done = cli("sample", f"ckpt={CKPT}", "sampler=tuned", "label=all", "n=4")
    assert (done.code, "other guidance" in done.err) == (2, True), done.err
    assert cli("tune", f"ckpt={CKPT}", "steps=2", "out=u").code == 0
    assert len(checkpoint.read(model)["tuned"]) == 2
    done = cli("sample", f"ckpt={CKPT}", "sampler=tuned", *words[:2], "guidance.scale=1", "n=4", "out=w")
    assert (done.code, "without this guidance" in done.err) == (0, True), done.err


@pytest.mark.heavy
def test_it_is_exported_and_imported(cli, model, tmp_path, fitted):
    assert cli("tune", f"ckpt={CKPT}", "steps=[2,3]", "out=t").code == 0
    assert cli("tune", f"ckpt={CKPT}", "steps=2", "what=times", "out=u").code == 0
    assert cli("export", f"ckpt={CKPT}", "out=x").code == 0
    assert cli("import", "path=x", "out=y").code == 0
    assert same(checkpoint.read(model)["tuned"], checkpoint.read(tmp_path / "y/checkpoints/last.ckpt")["tuned"])
    assert cli("sample", "ckpt=y/checkpoints/last.ckpt", "sampler=tuned", "nfe=2", "n=4", "out=s").code == 0
    text = (tmp_path / "x/model.json").read_text()
    for old, new in (
        ('"before": 0.5', '"before": "x"'),
        ('"tuned": [', '"tuned": [7, '),
        ('"times": [', '"times": [[1.0], '),
    ):
        (tmp_path / "x/model.json").write_text(text.replace(old, new))
        done = cli("import", "path=x", "out=z")
        assert (done.code, "Traceback" in done.err) == (3, False), done.err


FORGED = {
    "steps": [0, True, 3, 2.0, 10**9],
    "times": [[1.0, 0.5], *(torch.tensor([*ends, 0.1]).double() for ends in ((1, 0.1), (1.1, 0.5), (1,))), torch.ones(3)],
    "weights": [torch.zeros(3, 3).double(), torch.zeros(2, 3), torch.full((2, 3), torch.nan).double(), 1.0],
    "alpha": [None, torch.ones(2).double()],
    "sampler": [{"a": "${b}"}, {1.5: {}, "x": torch.ones(1)}, None],
    "before": ["0.1", None, 1],
    "name": ["\x1b[2J", 5],
    "fit": [None, {"n": torch.ones(2)}],
    "more": [1],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in FORGED.items() for value in values])
def test_a_forged_one_is_refused(trained, tmp_path, key, value):
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    checkpoint.write(content | {"tuned": [ENTRY]}, tmp_path / "whole.ckpt")
    assert same(checkpoint.read(tmp_path / "whole.ckpt")["tuned"], [ENTRY])
    checkpoint.write(content | {"tuned": [ENTRY, ENTRY | {key: value}]}, tmp_path / "forged.ckpt")
    with pytest.raises(CheckpointError) as refused:
        checkpoint.read(tmp_path / "forged.ckpt")
    assert refused.value.message.isprintable()
