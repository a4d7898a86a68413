"""What a run that goes on may meet: damaged checkpoints, changed settings, other numbers of processes, pictures that broke."""

import json
import math
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli import checkpoint
from diffcli.commands.changes import check_same
from diffcli.commands.resume import _step
from diffcli.data.base import TensorItems, identity
from diffcli.errors import UsageError

TINY = (
    "data=moons", "data.n=50", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=12", "trainer.max_steps=4",
    "trainer.val_check_interval=3", "preview.every=0", "trainer.log_every_n_steps=1", "checkpoint.every=1", "checkpoint.keep=9",
    "optim.warmup=0", "optim.decay=none",
)  # fmt: skip


def settings(*words):
    """The command's words; a later one takes the place of an earlier one."""
    return [f"{k}={v}" for k, v in dict(w.split("=", 1) for w in (*TINY, *words)).items()]


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, each with its checkpoint."""
    from diffcli.cli import main

    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *settings(f"out={out}")]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that was killed."""
    shutil.copytree(trained, tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"status": "running"}))
    return tmp_path / "run"


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def changed(change):
    def spoil(path):
        content = load(path)
        change(content)
        checkpoint.write(content, path)

    return spoil


def first(node):
    return next(iter(node))


SPOILED = {  # name -> what happened to it, and a part of the sentence
    "cut short": (torn, ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "weight missing": (changed(lambda c: c["state_dict"].pop(first(c["state_dict"]))), "is missing"),
    "weight of another shape": (
        changed(lambda c: c["ema"].update({first(c["ema"]): torch.zeros(3)})), "has another shape"),
    "no optimiser": (changed(lambda c: c.pop("optimizer_states")), "optimizer_states"),
    "optimiser of another model": (
        changed(lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(2))), "does not fit its weights"),
    "optimiser not finite": (
        changed(lambda c: c["optimizer_states"][0]["state"][1]["exp_avg_sq"].fill_(torch.nan)), ""),
    "no loops": (changed(lambda c: c["loops"].clear()), "does not fit its weights"),
    "a count that is none": (changed(lambda c: c.update(seen="many")), "does not fit its weights"),
    "no position": (changed(lambda c: c.pop("batches")), "batches"),
}  # fmt: skip


@pytest.mark.parametrize("name", [n if n in ("cut short", "optimiser of another model") else
                                  pytest.param(n, marks=pytest.mark.heavy) for n in SPOILED])  # fmt: skip
def test_the_newest_that_is_damaged_is_skipped(cli, run, name, injected):
    """last and the newest two steps are: it goes on from the one before them, to the same end."""
    spoil, sentence = SPOILED[name]
    whole = load(run / "checkpoints/last.ckpt")
    for each in ("last", "step0000004", "step0000003"):
        spoil(run / f"checkpoints/{each}.ckpt")
    (run / "checkpoints/best.ckpt").unlink()
    done = cli("train", *settings(f"out={run}", "resume=auto"))
    assert done.code == 0, done.err
    assert done.out.count("skipped: ") == 3, done.out
    assert sentence in done.out
    assert "(step 2)" in done.out
    last = load(run / "checkpoints/last.ckpt")
    assert last["global_step"] == 4
    for part in ("state_dict", "ema"):
        assert all(torch.equal(v, whole[part][k]) for k, v in last[part].items())
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"last.ckpt.old", "step0000003.ckpt.old", "step0000003.ckpt", "best.ckpt"} <= names
    assert cli("train", *settings(f"out={run}", "resume=auto")).code == 0  # and the next one starts from whole ones
    injected("newest checkpoint damaged", "skipped by name, the one before it is gone on from", 3, 3)


@pytest.mark.heavy
def test_all_damaged_is_a_new_start_and_a_named_path_a_refusal(cli, run, injected):
    for path in (run / "checkpoints").glob("*.ckpt"):
        torn(path)
    refused = cli("train", *settings(f"resume={run}/checkpoints/last.ckpt"))
    assert (refused.code, refused.err.count("\n")) in ((3, 1), (3, 2)), refused.err
    done = cli("train", *settings(f"out={run}", "resume=auto"))
    assert done.code == 0, done.err
    assert done.out.count("skipped: ") == 6
    assert "starting again from step 0" in done.out
    assert load(run / "checkpoints/last.ckpt")["global_step"] == 4
    assert len(list((run / "checkpoints").glob("*.ckpt.old"))) == 6, "what could not be read is lost"
    injected("all checkpoints damaged", "a new start, or exit 3 where one was named", 2, 2)


@pytest.mark.heavy
def test_an_older_one_that_is_named_is_gone_on_from_and_later_ones_step_aside(cli, run):
    done = cli("train", *settings(f"resume={run}/checkpoints/step0000002.ckpt", "trainer.max_steps=3"))
    assert done.code == 0, done.err
    left = {path.name: path for path in (run / "checkpoints").iterdir()}
    assert left.keys() >= {"step0000003.ckpt", "step0000004.ckpt.old", "last.ckpt.old", "last.ckpt"}
    assert load(left["last.ckpt"])["global_step"] == 3
    again = cli("train", *settings(f"out={run}", "resume=auto", "trainer.max_steps=4"))
    assert "(step 3)" in again.out, again.out + again.err


@pytest.mark.heavy
def test_a_named_one_never_replaces_another_run(cli, run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    before = (tmp_path / "other/run.json").read_text()
    refused = cli("train", *settings(f"resume={run}/checkpoints/step0000002.ckpt", f"out={tmp_path}/other"))
    assert (refused.code, "already holds a run" in refused.err) == (2, True)
    assert (tmp_path / "other/run.json").read_text() == before


REFUSED = {  # words -> what the sentence holds
    ("network.width=16",): ("denoiser.network.width was 8, is now 16",),
    ("sde=ve",): ("denoiser.sde was VP, is now VE",),
    ("schedule.beta_max=25",): ("beta_max was 20.0, is now 25",),
    ("prediction=v",): ("denoiser was Eps, is now V",),
    ("data.n=60",): ("data.n was 50, is now 60",),
    ("data=circles",): ("another data",),
    ("condition=label",): ("condition=none, not label",),
    ("network.width=16", "resume_allow=[network]"): ("cannot change in a resumed run",),
    ("optim.lr=1e-2",): ("optim.lr was 0.002, is now 0.01", "resume_allow=[optim.lr]"),
    ("optim=adam",): ("optim", "resume_allow=[optim"),
    ("optim.lr=1e-2", "batch_size=10", "loss.weight=snr", "seed=3", "ema.decay=0.5"): (
        "optim.lr was", "batch_size was 12, is now 10", "loss.weight was", "seed was 0, is now 3", "ema.decay was",
    ),
    ("optim.lr=1e-2", "batch_size=10", "resume_allow=[batch_size]"): ("differ", "optim.lr was"),
    ("optim.lr=1e-2", "resume_allow=[optim.betas]"): ("optim.lr was",),
    ("optim.lr=1e-2", "resume_allow=[optm]"): ("did you mean 'optim'",),
    ("trainer.accumulate_grad_batches=2",): ("trainer.accumulate_grad_batches was 1, is now 2",),
    ("trainer.gradient_clip_val=null",): ("trainer.gradient_clip_val was 1.0, is now None",),
    ("devices=2",): ("trainer.devices was 1, is now 2",),
}  # fmt: skip


FAST = (("network.width=16",), ("optim.lr=1e-2", "batch_size=10", "resume_allow=[batch_size]"))


@pytest.mark.parametrize(
    "words", [w if w in FAST else pytest.param(w, marks=pytest.mark.heavy) for w in REFUSED], ids=lambda w: " ".join(w)
)
def test_a_changed_setting_is_never_ignored(cli, run, words, injected):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    done = cli("train", *settings(f"out={run}", "resume=auto", "trainer.max_steps=6", *words))
    assert done.code == 2, done.err
    assert all(part in done.err for part in REFUSED[words]), done.err
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    injected("resume with a changed setting", "exit 2 with the setting and both values, nothing touched")


def test_what_makes_no_difference_may_change(run):
    """A rank that did not come in time asks for a longer time-out, and for resume=auto."""
    old = load(run / "checkpoints/last.ckpt")["config"]
    for free in ({"timeout": 7200}, {"workers": 3}, {"preview": old["preview"] | {"every": 7}}):
        assert old | free != old
        assert check_same(old, old | free, run) == []


def test_what_an_older_version_did_not_have_is_a_change_too(run):
    """Its checkpoint says nothing of such a setting, and it had the value that it has by default."""
    new = load(run / "checkpoints/last.ckpt")["config"]
    old = {k: v for k, v in new.items() if k not in ("augment", "channels_last", "cuda_graphs")}
    old["ema"] = {"decay": new["ema"]["decay"]}
    assert check_same(old, new, run) == []
    for part, name, value in (("augment", "flip", True), ("augment", "shift", 2), ("ema", "profile", "power")):
        other = new | {part: new[part] | {name: value}}
        with pytest.raises(UsageError, match=f"{part}.{name} was .*, is now {value}"):
            check_same(old, other, run)
        assert [c.key for c in check_same(old, other | {"resume_allow": [part]}, run)] == [f"{part}.{name}"]
    with pytest.raises(UsageError, match="channels_last was False, is now True"):
        check_same(old, new | {"channels_last": True}, run)


def test_a_step_is_looked_up_in_nothing_that_would_not_be_read(run, tmp_path):
    """Neither in an archive that is compressed, which torch reads, nor in a pipe, for which it would wait."""
    whole, packed, pipe = run / "checkpoints/last.ckpt", tmp_path / "packed.ckpt", tmp_path / "pipe.ckpt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(packed, "w") as new:
        for member in old.infolist():
            kind = zipfile.ZIP_DEFLATED if member.filename.endswith("data.pkl") else zipfile.ZIP_STORED
            new.writestr(member.filename, old.read(member), kind)
    os.mkfifo(pipe)
    assert load(packed)["global_step"] == 4
    assert [_step(path) for path in (whole, packed, pipe)] == [4, math.inf, math.inf]


@pytest.mark.parametrize("wish", ["yes", "nowhere/last.ckpt"])
def test_a_checkpoint_that_is_not_there_is_named_with_what_would_fit(cli, run, wish):
    done = cli("train", *settings(f"out={run}", f"resume={wish}"))
    assert done.code == 2
    assert done.err.startswith(f"error: resume={wish}: there is no such checkpoint\ntry: resume=auto, resume=never")


def test_another_kind_of_model_is_refused_and_nothing_of_it_touched(cli, run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    words = settings(f"out={run}", "resume=auto", "task=classifier")
    words = [w for w in words if not w.startswith(("network", "preview"))]
    refused = cli("train", *words)
    assert (refused.code, "is a model of scores, not a classifier" in refused.err) == (2, True), refused.err
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_other_items_under_the_same_name_are_refused_and_the_same_elsewhere_are_not(cli, tmp_path, injected):
    x = np.random.default_rng(0).normal(size=(50, 2))
    for name in ("x", "y"):
        np.save(tmp_path / f"{name}.npy", x)
    words = [w for w in settings("data=array", "out=run", "resume=auto") if not w.startswith("data.n=")]
    assert cli("train", *words, "data.file=x.npy").code == 0
    np.save(tmp_path / "x.npy", x + 1e-6)
    refused = cli("train", *words, "data.file=x.npy", "trainer.max_steps=5")
    assert (refused.code, "the training items were 50 items (" in refused.err) == (2, True), refused.err
    moved = cli("train", *words, "data.file=y.npy", "trainer.max_steps=5")
    assert moved.code == 0, moved.err
    assert "(step 4)" in moved.out
    labels = torch.zeros(50, dtype=torch.int64)
    assert identity(TensorItems(torch.ones(50, 2), labels)) != identity(TensorItems(torch.ones(50, 2), labels + 1))
    injected("other data under the same name", "exit 2, nothing touched")


def gone_on(cli, run, *words, steps=6):
    done = cli("train", *settings(f"resume={run}/checkpoints/step0000002.ckpt", f"trainer.max_steps={steps}", *words))
    assert done.code == 0, done.err
    return done.out, load(run / "checkpoints/last.ckpt")


def test_what_is_allowed_really_applies(cli, run, injected):
    words = (
        "optim=adam",
        "optim.lr=0.05",
        "optim.betas=[0.5,0.6]",
        "optim.weight_decay=0.3",
        "optim.warmup=0",
        "ema.decay=0.1",
    )
    out, last = gone_on(cli, run, *words, "resume_allow=[optim,ema.decay]")
    (group,) = last["optimizer_states"][0]["param_groups"]
    assert (group["lr"], list(group["betas"]), group["weight_decay"]) == (0.05, [0.5, 0.6], 0.3)
    assert not group["decoupled_weight_decay"]  # Adam's own
    assert "optim.lr was 0.002, is now 0.05" in out
    assert {state["step"].item() for state in last["optimizer_states"][0]["state"].values()} == {
        6
    }  # and the old state stays
    weights = {k: v for k, v in last["state_dict"].items() if k in last["ema"]}
    assert all((last["ema"][k] - v).abs().max() < 0.2 for k, v in weights.items())
    injected("allowed change of the optimiser", "applies, in all its settings",
             stock="Lightning puts back the checkpoint's betas, weight decay and kind")  # fmt: skip


def test_stock_lightning_puts_the_old_settings_back():
    """What the change above would come to without us: the state's own settings win over those of the new optimiser."""
    weight = torch.nn.Parameter(torch.ones(2))
    old = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.99)).state_dict()
    new = torch.optim.Adam([weight], lr=0.2, betas=(0.5, 0.6))
    new.load_state_dict(old)
    assert new.param_groups[0]["betas"] == (0.9, 0.99)
    assert new.param_groups[0]["lr"] == 0.1


@pytest.mark.heavy
def test_another_loss_keeps_the_model_and_starts_its_own_parameters_afresh(cli, run):
    out, last = gone_on(cli, run, "loss.weight=learned", "resume_allow=[loss]", steps=3)
    own = [k for k in last["ema"] if k.startswith("loss.")]
    assert own and "start afresh" in out
    state, number = last["optimizer_states"][0]["state"], {k: i for i, k in enumerate(last["ema"])}
    assert {state[i]["step"].item() for k, i in number.items() if k not in own} == {3}
    assert {state[number[k]]["step"].item() for k in own} == {1}
    _, last = gone_on(cli, run, "loss.weight=simple", "resume_allow=[loss]", steps=4)
    assert not [k for k in last["ema"] if k.startswith("loss.")]


@pytest.mark.heavy
@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_more_steps_are_free_unless_they_move_the_cosine(cli, trained, tmp_path, decay):
    shutil.copytree(trained, tmp_path / "run")
    if decay == "none":
        assert cli("train", *settings(f"out={tmp_path}/run", "resume=auto", "trainer.max_steps=6")).code == 0
        assert cli("train", *settings("out=whole", "trainer.max_steps=6")).code == 0
        a, b = (load(tmp_path / f"{name}/checkpoints/last.ckpt") for name in ("run", "whole"))
        assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
        return
    assert cli("train", *settings("out=c", "optim.decay=cosine")).code == 0
    longer = ("out=c", "optim.decay=cosine", "resume=auto", "trainer.max_steps=6")
    refused = cli("train", *settings(*longer))
    assert (refused.code, "resume_allow=[trainer.max_steps]" in refused.err) == (2, True)
    assert cli("train", *settings(*longer, "resume_allow=[trainer.max_steps]")).code == 0


class Kept:
    """Which items a training took, in order."""

    def __init__(self, monkeypatch):
        from diffcli.data.base import TensorItems

        self.taken, own = [], TensorItems.__getitems__

        def taking(items, indices):
            self.taken += [int(i) for i in indices]
            return own(items, indices)

        monkeypatch.setattr(TensorItems, "__getitems__", taking)


@pytest.mark.parametrize(
    "words",
    [
        ("batch_size=7", "trainer.accumulate_grad_batches=3"),
        pytest.param(("batch_size=5",), marks=pytest.mark.heavy),
        pytest.param(("trainer.accumulate_grad_batches=2",), marks=pytest.mark.heavy),
    ],
    ids=" ".join,
)
def test_with_another_batch_each_item_still_comes_once_an_epoch(cli, run, monkeypatch, words, injected):
    from diffcli.training.data import BatchOrder

    batch, window = 12, 1
    for key, _, value in (word.partition("=") for word in words):
        batch, window = (int(value), window) if key == "batch_size" else (batch, int(value))
    kept = Kept(monkeypatch)
    out, last = gone_on(
        cli, run, *words, "trainer.limit_val_batches=0", "resident=0", "resume_allow=[batch_size,trainer]", steps=5,
    )  # fmt: skip
    order = iter(BatchOrder(50, 1, 0))
    expected = [next(order)[0] for _ in range(24 + 3 * window * batch)]
    assert f" {' '.join(map(str, expected[24:]))} " in f" {' '.join(map(str, kept.taken))} "
    assert "each once an epoch" in out
    assert last["seen"] == len(expected)
    assert last["global_step"] == 5
    injected("allowed change of the batch", "applies; the order of the data goes on where it was")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_picture_that_breaks_ends_the_run_with_a_sentence_and_all_its_checkpoints(
    cli, tmp_path, monkeypatch, workers, injected
):
    from diffcli.data import image_folder

    folder, read = tmp_path / "pictures", image_folder.read_picture
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    for i in range(20):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")

    def breaking(file, *args):
        if (tmp_path / "p/checkpoints/step0000003.ckpt").exists():
            raise UsageError(f"{file} cannot be decoded: cut short", "remove or replace it")
        return read(file, *args)

    monkeypatch.setattr(image_folder, "read_picture", breaking)
    words = ("data=image_folder", f"data.root={folder}", "data.size=8", "out=p", "batch_size=4", "trainer.max_steps=99")
    done = cli("train", *[w for w in settings(*words) if not w.startswith("data.n=")], f"workers={workers}")
    assert done.code == 1, done.err
    assert "cannot be decoded: cut short" in done.err and "Traceback" not in done.err, done.err
    assert (tmp_path / "p/checkpoints/step0000003.ckpt").exists()
    assert json.loads((tmp_path / "p/run.json").read_text())["status"] == "failed"
    injected("a picture that breaks while training", "exit 1 with its name, every checkpoint kept")
