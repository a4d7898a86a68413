"""Several processes train together: one that dies or fails ends the others with one sentence, and nothing stays behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffcli import checkpoint

TINY = (
    "data=moons", "data.n=200", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=10", "preview.every=0",
    "trainer.val_check_interval=1000", "checkpoint.every=1", "checkpoint.keep=0", "trainer=ddp", "device=cpu", "devices=2",
    "timeout=60",
)  # fmt: skip
IN_STEP = """
import os, signal, sys, time
from diffcli.training.module import Training
real = Training.losses
def losses(self, batch, draw):
    if draw.rank == {rank} and draw.step == {step} and draw.seed == 0:
        {what}
    return real(self, batch, draw)
Training.losses = losses
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def session(leader):
    """The processes of a command's session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z" and int(path.parent.name) != leader:
            found.append(int(path.parent.name))
    return found


def nothing_left(command):
    """Until the session is empty: what loads data for a killed rank sees that within seconds."""
    end = time.monotonic() + 60
    while session(command.pid):
        assert time.monotonic() < end, session(command.pid)
        time.sleep(0.1)


def failed(folder):
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed"
    return record["results"]["error"]


@pytest.mark.heavy
def test_a_rank_that_is_killed_is_named_and_ends_the_others(start, tmp_path, injected):
    command = start(
        "train", *TINY, "trainer.max_steps=1000", "out=run", faults=IN_STEP.format(rank=1, step=5, what=KILL)
    )
    assert command.wait() == 1, command.said
    assert "error: rank 1 ended in the middle of its work (killed by SIGKILL)" in command.said
    assert command.said.count("error:") == 1 and "Traceback" not in command.said
    assert "rank 1" in failed(tmp_path / "run")
    assert checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 5
    nothing_left(command)
    injected(
        "kill -9 of one rank of two",
        "exit 1 with the rank named, no process left",
        stock="Lightning kills rank 0 too, without a word",
    )


STOCK = """
import os, signal, torch, lightning as L
class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, index):
        if self.global_rank == 1 and index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(torch.ones(1, 1)).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
try:
    L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=50, logger=False, enable_checkpointing=False,
              enable_progress_bar=False, enable_model_summary=False).fit(Module(), range(1000))
except RuntimeError:
    import time
    time.sleep(60)  # a program that has its own ending to see to: writing down what has happened
print("said what happened")
"""


@pytest.mark.heavy
def test_stock_lightning_ends_the_first_rank_without_a_word(tmp_path):
    (tmp_path / "stock.py").write_text(STOCK)
    done = subprocess.run([sys.executable, "stock.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert "said what happened" not in done.stdout


@pytest.mark.heavy
def test_a_failure_of_one_rank_is_its_own_sentence_and_its_own_code(start, tmp_path, injected):
    what = "raise NumericalError('the loss is odd', 'another one')"
    faults = "from diffcli.errors import NumericalError\n" + IN_STEP.format(rank=1, step=3, what=what)
    command = start("train", *TINY, "trainer.max_steps=1000", "out=run", faults=faults)
    assert command.wait() == 4, command.said
    assert "error: rank 1: the loss is odd\ntry: another one" in command.said and "Traceback" not in command.said
    assert failed(tmp_path / "run") == "rank 1: the loss is odd"
    assert "in losses" in (tmp_path / "run/error.log").read_text()  # where it happened, in the other process
    nothing_left(command)
    injected("exception in one rank of two", "its sentence and exit code, its trace in error.log")


@pytest.mark.heavy
def test_a_rank_that_fails_before_it_trains_does_not_keep_the_others(start, tmp_path, injected):
    faults = """
import os
if os.environ.get("RANK") == "1":
    import diffcli.commands.train as train
    def build_parts(config):
        raise OSError("no such disk here")
    train.build_parts = build_parts
"""
    command = start("train", *TINY, "trainer.max_steps=1000", "out=run", faults=faults)
    assert command.wait() == 1, command.said
    assert "error: rank 1: OSError: no such disk here" in command.said
    nothing_left(command)
    injected("a rank that cannot start", "exit 1 with the rank named")


@pytest.mark.heavy
def test_a_rank_that_dies_leaves_the_other_jobs_of_a_sweep(start, tmp_path, injected):
    faults = IN_STEP.format(rank=1, step=3, what=KILL)
    command = start("train", "-m", "seed=0,1", *TINY, "trainer.max_steps=6", "out=sweep", faults=faults)
    assert command.wait() == 1, command.said
    assert "rank 1" in failed(tmp_path / "sweep/0")
    assert json.loads((tmp_path / "sweep/1/run.json").read_text())["status"] == "finished"
    nothing_left(command)
    injected("kill -9 of one rank of two in the first job of a sweep", "the second job finishes")


LATE_WORD = """
import diffcli.cli as cli
import time
def late(*arguments, **more):  # torchrun has sent its SIGTERM by then
    time.sleep(2)
    return report(*arguments, **more)
report, cli.report = cli.report, late
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("rank", "more"), [(0, ""), (0, LATE_WORD), (1, "")], ids=["0", "0-late", "1"])
def test_under_torchrun_the_dead_rank_is_named_too(tmp_path, rank, more, injected):
    (tmp_path / "sitecustomize.py").write_text(IN_STEP.format(rank=rank, step=4, what=KILL) + more)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "diffcli", "train",
         *(word for word in TINY if word != "devices=2"), "trainer.max_steps=1000", "out=run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"error: rank {rank} " in done.stderr and "\nTraceback" not in done.stderr.partition("torch/distributed")[0]
    assert checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] >= 3
    if rank == 1:
        assert "rank 1" in failed(tmp_path / "run")
    injected("kill -9 of one rank of two under torchrun", "exit 1 with the rank named")
