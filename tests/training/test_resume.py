"""A resumed run is the uninterrupted one, bit for bit, from any step and whatever goes on between two of them."""

import csv
import json
import shutil

import pytest
import torch

COMMON = (
    "preview.every=0", "trainer.log_every_n_steps=1", "checkpoint.every=1", "checkpoint.keep=99", "ema.decay=0.9",
    "optim.warmup=4",
)  # fmt: skip
POINTS = (
    *COMMON, "data=moons", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=12", "trainer.max_steps=7",
    "trainer.val_check_interval=3", "data.n=50",
)  # fmt: skip
IMAGES = (
    *COMMON, "batch_size=100", "network.channels=8", "network.multipliers=[1]", "network.attention=[]", "network.dropout=0.1",
    "trainer.max_steps=5", "trainer.val_check_interval=2",
)  # fmt: skip
PARTS = ("state_dict", "ema", "optimizer_states", "batches", "seen", "validated", "best", "ema_updates", "global_step")
COUNTED = ("epoch_loop.batch_progress", "epoch_loop.state_dict")


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_same(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, (list, tuple)):
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{where}.{i}")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def rows(folder):
    """metrics.csv without what depends on the clock."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")}
            for row in csv.DictReader(file)
        ]


def left_at(whole, folder, name):
    """What a run killed after this checkpoint left: no later checkpoint, but rows of metrics.csv that came later."""
    shutil.copytree(whole, folder)
    step = load(whole / f"checkpoints/{name}.ckpt")["global_step"]
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.stem != name and (path.stem == "last" or load(path)["global_step"] > step or name == "best"):
            path.unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    return step


def assert_goes_on_the_same(cli, whole, words, name):
    folder = whole.with_name(f"from_{name}")
    step = left_at(whole, folder, name)
    done = cli("train", *words, f"out={folder}", "resume=auto")
    assert done.code == 0, done.err
    assert f"(step {step})" in done.out
    a, b = (load(run / "checkpoints/last.ckpt") for run in (whole, folder))
    for part in PARTS:
        assert_same(a[part], b[part], f"{name}: {part}")
    for part in COUNTED:
        assert_same(a["loops"]["fit_loop"][part], b["loops"]["fit_loop"][part], f"{name}: {part}")
    assert rows(folder) == rows(whole)
    best = [load(run / "checkpoints/best.ckpt") for run in (whole, folder)]
    for part in ("state_dict", "ema", "global_step", "best"):
        assert_same(best[0][part], best[1][part], f"best of {name}: {part}")
    results = [json.loads((run / "run.json").read_text())["results"] for run in (whole, folder)]
    of_steps = (
        ("loss",) if step < record_of(whole)["steps"] else ()
    )  # where none is left to take, there is no loss of one
    for key in ("images_seen", *of_steps, "val_loss", "best_val_loss"):
        assert results[0][key] == results[1][key], key


def record_of(run):
    return json.loads((run / "run.json").read_text())


def run_whole(cli, tmp_path, words):
    whole = tmp_path / "whole"
    done = cli("train", *words, f"out={whole}")
    assert done.code == 0, done.err
    return whole


def steps(*numbers):
    return tuple(f"step{i:07d}" for i in numbers)


@pytest.mark.parametrize(
    ("accumulate", "names"),
    [
        (2, (*steps(3), "best")),
        pytest.param(1, (*steps(1, 2, 3, 4, 5, 6, 7), "best"), marks=pytest.mark.heavy),
        pytest.param(2, steps(1, 2, 4, 5, 6, 7), marks=pytest.mark.heavy),
        pytest.param(4, (*steps(1, 3, 6, 7), "best"), marks=pytest.mark.heavy),
    ],
)
def test_from_every_step_it_goes_on_the_same(cli, tmp_path, accumulate, names):
    """Validation every 3 batches falls on steps, and within accumulations; best.ckpt is written there."""
    words = (*POINTS, f"trainer.accumulate_grad_batches={accumulate}")
    whole = run_whole(cli, tmp_path, words)
    for name in names:
        assert_goes_on_the_same(cli, whole, words, name)


KINDS = {
    "images, dropout, workers": (*IMAGES, "workers=2"),
    "labels": (*IMAGES, "condition=label", "drop=0.5", "loss.weight=learned"),
    "classifier": (
        *COMMON, "task=classifier", "trainer.max_steps=5", "batch_size=100", "task.network.channels=4", "sde=ve",
        "task.network.multipliers=[1]", "task.network.dropout=0.1", "trainer.val_check_interval=2",
    ),
    "ot": (*POINTS, "sde=flow", "prediction=velocity", "loss=ot_flow"),
    "source": (*POINTS, "source=circles", "source.n=40", "source_noise=0.3"),
    "cnf": (*POINTS, "prediction=velocity", "loss=cnf", "sde=flow", "batch_size=6"),
    "ssm": (*POINTS, "loss=ssm"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [k if k == "labels" else pytest.param(k, marks=pytest.mark.heavy) for k in KINDS])
def test_every_kind_of_training_goes_on_the_same(cli, tmp_path, kind):
    words = [w for w in KINDS[kind] if w != "preview.every=0" or kind != "classifier"]
    whole = run_whole(cli, tmp_path, words)
    for name in steps(2, 3):
        assert_goes_on_the_same(cli, whole, words, name)


@pytest.mark.heavy
def test_two_processes_go_on_the_same_and_one_takes_over_from_two(cli, tmp_path):
    words = (*POINTS, "batch_size=6", "trainer.max_steps=5", "trainer.accumulate_grad_batches=2")
    two = (*words, "trainer=ddp", "device=cpu", "devices=2")
    whole = run_whole(cli, tmp_path, two)
    for name in steps(3):
        assert_goes_on_the_same(cli, whole, two, name)
    alone = ("out=alone", f"resume={whole}/checkpoints/step0000003.ckpt")
    refused = cli("train", *words, *alone)
    assert (refused.code, "trainer.devices was 2, is now 1" in refused.err) == (2, True), refused.err
    done = cli("train", *words, *alone, "resume_allow=[trainer]")
    assert done.code == 0, done.err
    assert load(tmp_path / "alone/checkpoints/last.ckpt")["seen"] == 5 * 2 * 6 * 2 - 2 * 2 * 6
