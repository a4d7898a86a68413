"""kill -9 at any moment: under a final name there is always a whole checkpoint, and what goes on from it loses nothing else."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from diffcli import checkpoint
from diffcli.errors import CheckpointError

STEPS = 40
TINY = (
    "data=moons", "network=mlp", "network.width=32", "network.blocks=1", "batch_size=64", f"trainer.max_steps={STEPS}",
    "preview.every=0", "trainer.val_check_interval=10", "trainer.log_every_n_steps=1", "checkpoint.every=1",
    "checkpoint.keep=2",
)  # fmt: skip

EXPECTED = "every checkpoint whole; going on gives the same weights, bit for bit"
KILL = "import os, signal\ndef die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
AT = {  # where in the writing of the fifth last.ckpt the process is killed
    "half written": """
import io, torch
real, calls = torch.save, []
def save(content, file):
    calls.append(1)
    if len(calls) < 10:  # each step has two
        return real(content, file)
    whole = io.BytesIO()
    real(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()
torch.save = save
""",
    "before it has its name": """
real, names = os.replace, []
def replace(old, new):
    names.append(new) if str(new).endswith("last.ckpt") else None
    die() if len(names) == 5 else real(old, new)
os.replace = replace
""",
    "when it has its name": """
import diffcli.checkpoint
calls = []
def flush(folder):
    calls.append(1)
    die() if len(calls) == 10 else None
diffcli.checkpoint._flush = flush
""",
}
# Lightning's own writer, killed while it moves its temporary file from TMPDIR, on another file system, to its final name
STOCK = """
import diffcli.training.checkpoints as checkpoints
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
class Stock(TorchCheckpointIO):
    failure = None
checkpoints.AtomicCheckpointIO = Stock
real = os.rename
def rename(old, new, **kwargs):
    if str(new).endswith(".ckpt"):
        raise OSError(18, "Invalid cross-device link")
    return real(old, new, **kwargs)
os.rename = rename
send, sent = os.sendfile, []
def sendfile(out, file, offset, count):
    sent.append(1)
    if len(sent) < 9:
        return send(out, file, offset, count)
    send(out, file, offset, 2000)
    die()
os.sendfile = sendfile
"""


def weights(folder):
    content = checkpoint.read(folder / "checkpoints/last.ckpt")
    return content["global_step"], content["state_dict"] | {f"ema {k}": v for k, v in content["ema"].items()}


def assert_equal(found, expected):
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(value, expected[1][name]) for name, value in found[1].items())


def assert_whole(folder):
    """Every final name; the steps they are of."""
    return [
        checkpoint.read(path)["global_step"] for path in (folder / "checkpoints").glob("*.ckpt") if path.name[0] != "."
    ]


@pytest.fixture(scope="module")
def uninterrupted(start_in, tmp_path_factory):
    """The last checkpoint of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    whole = start_in(folder, "train", *TINY, "out=run")
    assert whole.wait() == 0, whole.said
    return weights(folder / "run")


@pytest.mark.parametrize("moment", [m if m == "half written" else pytest.param(m, marks=pytest.mark.heavy) for m in AT])
def test_a_kill_within_a_save_leaves_the_one_before(start, tmp_path, injected, uninterrupted, moment):
    run = start("train", *TINY, "out=run", faults=KILL + AT[moment])
    assert run.wait() == -9, run.said
    folder = tmp_path / "run/checkpoints"
    assert set(assert_whole(tmp_path / "run")) <= {4, 5}
    assert weights(tmp_path / "run")[0] == (5 if moment == "when it has its name" else 4)
    (folder / ".1.tmp.png").touch()  # of another process that lives: it stays
    rest = start("train", *TINY, "out=run", "resume=auto")
    assert rest.wait() == 0, rest.said
    assert_equal(weights(tmp_path / "run"), uninterrupted)
    assert sorted(p.name for p in folder.iterdir() if p.name[0] == ".") == [".1.tmp.png"]
    injected("kill -9 within a save", "the checkpoint before is whole; going on gives the same weights, bit for bit")


def test_lightnings_own_writer_leaves_half_a_checkpoint(start, tmp_path, injected):
    run = start("train", *TINY, "out=run", faults=KILL + STOCK)
    assert run.wait() == -9, run.said
    broken = 0
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        try:
            checkpoint.read(path)
        except CheckpointError:
            broken += 1
    assert broken == 1
    expected = "the checkpoint before is whole; going on gives the same weights, bit for bit"
    stock = "Lightning's TorchCheckpointIO: half a file under the final name"
    injected("kill -9 within a save", expected, n=0, survived=0, stock=stock)


def over(run):
    """Whether it has ended; a run that was at its last step already saves nothing."""
    return Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def killed_at_random(start, folder, uninterrupted, kills):
    """Kill and go on, `kills` times, every third before the first save; the seconds of work lost, summed."""
    moments, lost, killed, out = random.Random(7), 0.0, 0, 0
    while killed < kills:
        path, begun = folder / f"run{out}", time.time()
        last = path / "checkpoints/last.ckpt"
        run = start("train", *TINY, f"out=run{out}", "resume=auto")
        ended = path / "run.json" if killed % 3 == 0 else last
        run.until(
            lambda run=run, path=ended, begun=begun: over(run) or (path.exists() and path.stat().st_mtime > begun)
        )
        time.sleep(moments.uniform(0, 0.3))
        run.kill()
        now = time.time()
        if run.wait() == 0:  # it was done before
            assert_equal(weights(path), uninterrupted)
            out += 1
            continue
        killed += 1
        lost += now - max(begun, last.stat().st_mtime if last.exists() else 0)
        assert_whole(path)
    rest = start("train", *TINY, f"out=run{out}", "resume=auto")
    assert rest.wait() == 0, rest.said
    assert_equal(weights(folder / f"run{out}"), uninterrupted)
    return lost


@pytest.mark.heavy
def test_killed_at_random_moments(start, tmp_path, injected, uninterrupted):
    kills = 30
    lost = killed_at_random(start, tmp_path, uninterrupted, kills)
    injected("kill -9 at a random moment, a save at every step", EXPECTED, n=kills, survived=kills, lost=lost)


SAME = "every checkpoint whole, no process left over; going on gives the same weights, bit for bit"
TO = {  # what is sent to which of two processes, and the exit code of the first
    "KILL to the child": (signal.SIGKILL, 1, 1),
    "KILL to the parent": (signal.SIGKILL, 0, -9),
    "KILL to both": (signal.SIGKILL, None, -9),
    "TERM to the child": (signal.SIGTERM, 1, 143),
    "INT to both": (signal.SIGINT, None, 130),
}


def of_group(pid):
    """The processes of a session, without those that have ended."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-g", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "Z" not in line.split()[1]]


@pytest.mark.heavy
def test_two_processes_killed_at_random_moments(start, start_in, tmp_path, injected):
    two = ("trainer=ddp", "device=cpu", "devices=2", "checkpoint.keep=1")
    whole = tmp_path / "whole"
    whole.mkdir()
    run = start_in(whole, "train", *TINY, *two, "out=run")
    assert run.wait() == 0, run.said
    moments, lost = random.Random(3), 0.0
    for signum, to, code in TO.values():
        begun = weights(tmp_path / "run")[0] if (tmp_path / "run").exists() else 0
        run = start("train", *TINY, *two, "out=run", "resume=auto")
        metrics = tmp_path / "run/metrics.csv"
        wanted = begun + moments.randint(1, 4)
        run.until(
            lambda metrics=metrics, wanted=wanted: f"\n{wanted}," in (metrics.read_text() if metrics.exists() else "")
        )
        time.sleep(moments.uniform(0, 0.05))
        pids = of_group(run.pid)
        assert len(pids) == 2
        for pid in {None: pids, 0: [run.pid], 1: [pid for pid in pids if pid != run.pid]}[to]:
            os.kill(pid, signum)
        now = time.time()
        assert run.wait() == code, run.said
        assert "Traceback" not in run.said
        end = time.monotonic() + 30
        while of_group(run.pid):
            assert time.monotonic() < end
            time.sleep(0.05)
        if signum == signal.SIGKILL:
            lost += max(0.0, now - (tmp_path / "run/checkpoints/last.ckpt").stat().st_mtime)
        assert_whole(tmp_path / "run")
    rest = start("train", *TINY, *two, "out=run", "resume=auto")
    assert rest.wait() == 0, rest.said
    assert_equal(weights(tmp_path / "run"), weights(whole / "run"))
    injected("KILL, TERM and INT to one of two processes or both", SAME, n=len(TO), survived=len(TO), lost=lost)
