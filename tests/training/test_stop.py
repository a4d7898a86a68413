"""A training that is stopped, by a signal or by its own numbers, leaves a whole checkpoint to go on from."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli import checkpoint

STEPS = 150
SLOW = (
    "data=moons", f"trainer.max_steps={STEPS}", "batch_size=3000", "network.width=32", "network.blocks=2",
    "preview.every=0", "trainer.val_check_interval=1000", "trainer.log_every_n_steps=1", "out=run",
)  # fmt: skip


def settings(*words):
    """The command's words; a later one takes the place of an earlier one."""
    return [f"{k}={v}" for k, v in dict(w.split("=", 1) for w in (*SLOW, *words)).items()]


def start(folder, *words):
    """A training in a process, and a session, of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffcli", "train", *settings(*words)], cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_steps(process, metrics, steps):
    """Until metrics.csv has this many rows."""
    end = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") <= steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)


def stopped(tmp_path, signum, *words, group=False):
    """Start, signal after some steps; the exit code, the record, and the step of the last checkpoint."""
    process = start(tmp_path, *words)
    try:
        wait_for_steps(process, tmp_path / "run/metrics.csv", 3)
        os.killpg(process.pid, signum) if group else process.send_signal(signum)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in out, out
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (tmp_path / "run/checkpoints/last.ckpt").exists(), out
    content = checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")
    return process.returncode, record, content["global_step"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("signum", "code", "words"),
    [
        (signal.SIGINT, 130, ()),
        (signal.SIGTERM, 143, ("trainer.accumulate_grad_batches=2",)),
        (signal.SIGUSR1, 138, ()),
    ],
)
def test_a_signal_saves_and_stops_and_the_run_goes_on(cli, tmp_path, signum, code, words):
    found, record, step = stopped(tmp_path, signum, *words)
    assert found == code
    assert record["status"] == "stopped"
    assert 3 <= step < STEPS
    assert record["steps"] == step
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} <= {"last.ckpt", "best.ckpt"}  # no temporary file
    rest = cli("train", *settings(*words, "resume=auto"))
    assert rest.code == 0, rest.err
    assert f"(step {step})" in rest.out
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", STEPS)
    assert checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == STEPS
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["loss"]]
    assert len(set(steps)) == len(steps)  # none is there twice
    again = cli("train", *settings(*words, "resume=auto"))
    assert (again.code, "finished" in again.out) == (0, True)


@pytest.mark.heavy
def test_a_signal_to_all_its_processes_is_no_failure(tmp_path):
    # what Ctrl-C in a terminal does: the processes that load data get it too, here while they are being waited for
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    for i in range(20):
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i}.png", compress_level=0)
    words = ("data=image_folder", "data.root=pictures", "data.size=8", "network=mlp", "batch_size=64", "workers=1")
    found, record, step = stopped(tmp_path, signal.SIGINT, *words, group=True)
    assert (found, record["status"]) == (130, "stopped")
    assert step >= 3


def test_a_gradient_that_is_not_finite_stops_before_the_step(cli, tmp_path):
    done = cli("train", *settings("optim.lr=1e30", "optim.warmup=0", "checkpoint.every=1", "checkpoint.keep=9"))
    assert done.code == 4, done.err
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "failed"
    saved = sorted((tmp_path / "run/checkpoints").glob("step*.ckpt"))
    step = len(saved)  # so many steps were taken, and each was saved
    assert step >= 1
    assert f"not finite at step {step}" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in (tmp_path / "run/error.log").read_text()
    last = checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")  # which refuses weights that are not finite
    assert last["global_step"] == step
    assert all(torch.isfinite(v).all() for v in last["state_dict"].values())


def test_the_process_gets_its_signal_handlers_back(cli):
    """After a run that ends, and after one that fails: else the next Ctrl-C would only set a flag that nobody reads."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(s) for s in signals]
    for code, words in ((0, ()), (4, ("optim.lr=1e30", "optim.warmup=0"))):
        tiny = settings("trainer.max_steps=5", "batch_size=10", "network.width=8", f"out=run{code}", *words)
        assert cli("train", *tiny).code == code
        assert [signal.getsignal(s) for s in signals] == before
