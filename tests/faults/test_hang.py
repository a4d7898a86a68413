"""A rank that does not come ends the training within `timeout`, by its name; nobody waits for ever."""

import contextlib
import json
import time

import pytest

from diffcli import checkpoint
from diffcli.errors import DiffcliError, NumericalError
from diffcli.training import watch as module
from diffcli.training.processes import Processes
from diffcli.training.watch import Watch

TINY = (
    "data=moons", "data.n=200", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=10", "preview.every=0",
    "trainer.val_check_interval=1000", "checkpoint.every=1", "checkpoint.keep=0", "trainer=ddp", "device=cpu", "devices=2",
    "trainer.max_steps=1000", "timeout=20", "out=run",
)  # fmt: skip
IN_STEP = """
import os, signal, time
from diffcli.training.module import Training
real = Training.losses
def losses(self, batch, draw):
    if draw.rank == {rank} and draw.step == 5:
        {what}
    return real(self, batch, draw)
Training.losses = losses
"""
HANGS = {
    "stopped": (1, "os.kill(os.getpid(), signal.SIGSTOP)", "rank 1 no longer answers: last seen "),
    "waits": (1, "time.sleep(1000)", "rank 1 did not come within 20 s: last seen in step 6 (pid "),
    "the first waits": (0, "time.sleep(1000)", "rank 0 did not come within 20 s: last seen in step 6 (pid "),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", HANGS)
def test_a_rank_that_does_not_come_is_named(start, tmp_path, name, injected):
    rank, what, sentence = HANGS[name]
    command = start("train", *TINY, faults=IN_STEP.format(rank=rank, what=what))
    assert command.wait() == 1, command.said
    assert f"error: {sentence}" in command.said and "Traceback" not in command.said
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "failed" and record["results"]["error"].startswith(sentence)
    assert checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 5
    injected("a rank that hangs", "exit 1 within timeout, with the rank named")


@pytest.mark.heavy
def test_where_the_main_thread_cannot_be_reached_the_process_ends_all_the_same(start, tmp_path, injected):
    """As in a collective on GPUs: here the process group waits an hour."""
    faults = IN_STEP.format(rank=1, what="time.sleep(1000)") + (
        "import diffcli.commands.launch as launch\nfrom datetime import timedelta\n"
        "launch.timedelta = lambda seconds: timedelta(hours=1)\n"
    )
    command = start("train", *TINY, faults=faults)
    assert command.wait() == 1, command.said
    late = "did not come within 20 s", "no longer answers"  # the second, where the machine has not let its thread run
    assert any(f"error: rank 1 {what}" in command.said for what in late), command.said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    injected("a hang inside a library that cannot be interrupted", "exit 1 with the rank named")


@pytest.fixture
def two(monkeypatch):
    """The watches of two ranks in this process, their threads not begun, each with a sign of life."""
    monkeypatch.setattr(module, "PERIOD", 0.02)
    ranks = [Processes(rank, 2) for rank in (0, 1)]
    ranks[0].open(30)
    ranks[1].open(30, ranks[0].main_port)
    said = []
    watches = [Watch(rank, 5, [], said.append) for rank in ranks]
    for watch in watches:
        watch.said = said
        watch._say()
    yield watches
    for watch in watches:
        watch._stop.set()


CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")


def test_a_failure_is_heard_by_the_others_with_its_code_and_its_place(two):
    zero, one = two
    with contextlib.suppress(NumericalError):
        raise_and_tell(one)
    found = zero.cause(CLOSED)
    assert (found.message, found.hint, found.exit_code) == ("rank 1: the loss is odd", "another", 4)
    assert "raise_and_tell" in "".join(found.__notes__)


def raise_and_tell(watch):
    try:
        raise NumericalError("the loss is odd", "another")
    except NumericalError as error:
        assert watch.cause(error) is None  # its own
        raise


def test_the_first_failure_is_the_cause(two):
    zero, one = two
    one.fail(DiffcliError("first"))
    one.fail(DiffcliError("second"))
    assert zero.cause(CLOSED).message == "rank 1: first"


def test_an_error_that_is_a_ranks_own_is_nobody_elses(two):
    zero, one = two
    assert zero.cause(RuntimeError("shapes do not fit")) is None
    assert one.cause(CLOSED).message == "rank 0: RuntimeError: shapes do not fit"


def test_a_rank_that_gives_no_sign_of_life_is_named(two):
    zero, _ = two
    found = zero.cause(CLOSED)
    assert found.message.startswith("rank 1 no longer answers: last seen starting (pid ")


def test_a_rank_that_is_behind_is_named_though_it_lives(two):
    zero, one = two
    zero._at("in step 7")
    zero._say()
    one.start()
    assert zero._behind().message.startswith("rank 1 did not come within 5 s: last seen starting (pid ")
    one._at("in step 7")
    one._at("after step 7")
    one._say()
    assert zero._behind().message.startswith("rank 0 did not come within 5 s: last seen in step 7")


def test_a_thread_ends_what_waits_too_long_and_says_so(two, monkeypatch):
    zero, one = two
    codes = []
    monkeypatch.setattr(module, "GRACE", 0.05)
    monkeypatch.setattr(module.os, "_exit", lambda code: codes.append(code) or zero._stop.set())
    one.start()
    zero._at("in step 3")
    zero.patience = 0.2
    zero.start()
    end = time.monotonic() + 60
    while not codes and time.monotonic() < end:
        time.sleep(0.01)
    assert codes[:1] == [1]
    assert zero.said[0].message.startswith("rank 1 did not come within 5 s")
