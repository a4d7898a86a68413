"""Signals to one process or to all, in a step or in a validation, and the time limit: saved, stopped, and gone on with."""

import csv
import json
import signal

import pytest
import torch

from diffcli import checkpoint

STEPS = 16
TINY = (
    "data=moons", "network=mlp", "network.width=32", "network.blocks=1", "batch_size=64", f"trainer.max_steps={STEPS}",
    "preview.every=0", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1", "checkpoint.every=1000",
)  # fmt: skip
TWO = ("trainer=ddp", "device=cpu", "devices=2")

# at a batch of the training, or of the validation, a rank (or the whole group) gets a signal
AT = """
import os, signal
from diffcli.training.module import Steps
rank, done = int(os.environ.get("RANK", 0)), []
def send():
    if rank == {rank} and not done:
        done.append(1)
        os.killpg(os.getpgid(0), {signum}) if {group} else os.kill(os.getpid(), {signum})
training_step, validation_step = Steps.training_step, Steps.validation_step
def step(self, batch, index):
    if {batch} == self.batches and not {validation}:
        send()
    return training_step(self, batch, index)
def validate(self, batch, index):
    if {validation} and self.trainer.global_step == 8 and index == 2:
        send()
    return validation_step(self, batch, index)
Steps.training_step, Steps.validation_step = step, validate
"""


def fault(signum, validation=False, rank=0, group=False, batch=5):
    return AT.format(signum=int(signum), validation=validation, rank=rank, group=group, batch=batch)


def record(folder):
    return json.loads((folder / "run/run.json").read_text())


def last(folder):
    return checkpoint.read(folder / "run/checkpoints/last.ckpt")


def rows(folder):
    with (folder / "run/metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in csv.DictReader(file)]


def assert_equal(found, expected):
    for part in ("state_dict", "ema"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(value, expected[part][name]) for name, value in found[part].items())
    assert found["global_step"] == expected["global_step"]


def uninterrupted_of(start_in, folder, *words):
    whole = start_in(folder, "train", *TINY, *words, "out=run")
    assert whole.wait() == 0, whole.said
    return last(folder), rows(folder)


@pytest.fixture(scope="module")
def uninterrupted(start_in, tmp_path_factory):
    """The last checkpoint and the metrics of a run that nothing happened to."""
    return uninterrupted_of(start_in, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def uninterrupted_two(start_in, tmp_path_factory):
    return uninterrupted_of(start_in, tmp_path_factory.mktemp("two"), *TWO)


def assert_saved_and_goes_on(start, tmp_path, uninterrupted, code, step, *words):
    found = record(tmp_path)
    assert (found["status"], found["steps"]) == ("stopped", step)
    assert last(tmp_path)["global_step"] == step
    rest = start("train", *TINY, *words, "out=run", "resume=auto")
    assert rest.wait() == 0, rest.said
    assert_equal(last(tmp_path), uninterrupted[0])
    assert rows(tmp_path) == uninterrupted[1]  # each once, and the figures of the validation that was broken off


EXPECTED = "saved at the step's end, exit 128+n on all; going on gives the same weights and metrics, bit for bit"


@pytest.mark.parametrize(
    ("signum", "validation", "words"),
    [
        (signal.SIGTERM, False, ("trainer.accumulate_grad_batches=2",)),
        (signal.SIGINT, True, ()),
        pytest.param(signal.SIGTERM, True, (), marks=pytest.mark.heavy),
        pytest.param(signal.SIGINT, False, (), marks=pytest.mark.heavy),
        pytest.param(signal.SIGUSR1, False, (), marks=pytest.mark.heavy),
        pytest.param(signal.SIGUSR1, True, ("workers=1",), marks=pytest.mark.heavy),
        pytest.param(signal.SIGHUP, False, (), marks=pytest.mark.heavy),
    ],
)
def test_one_process(start, start_in, tmp_path, tmp_path_factory, injected, request, signum, validation, words):
    if words:
        whole = uninterrupted_of(start_in, tmp_path_factory.mktemp("whole"), *words)
    else:
        whole = request.getfixturevalue("uninterrupted")
    run = start("train", *TINY, *words, "out=run", faults=fault(signum, validation, group="workers=1" in words))
    assert run.wait() == 128 + signum, run.said
    assert "Traceback" not in run.said
    step = 8 if validation else 3 if words else 6
    assert_saved_and_goes_on(start, tmp_path, whole, 128 + signum, step, *words)
    injected("a signal in a " + ("validation" if validation else "step"), EXPECTED)
