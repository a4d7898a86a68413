"""A disk that is full in the middle of a save: the checkpoint before is whole, and the command says where room is missing."""

import json

import pytest

from diffcli import checkpoint

TINY = (
    "data=moons", "network=mlp", "network.width=32", "network.blocks=1", "batch_size=20", "trainer.max_steps=12",
    "preview.every=0", "trainer.val_check_interval=1000", "trainer.log_every_n_steps=1", "checkpoint.every=1", "out=run",
)  # fmt: skip
TWO = ("trainer=ddp", "device=cpu", "devices=2")

FULL = """
import os, torch
real, calls = torch.save, []
class Full:
    def __init__(self, file): self.file, self.room = file, 20000
    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)
def save(content, file):
    calls.append(1)
    return real(content, file if len(calls) < 10 else Full(file))
torch.save = save
"""
STOCK = """
import diffcli.training.checkpoints as checkpoints
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
class Stock(TorchCheckpointIO):
    failure = None
checkpoints.AtomicCheckpointIO = Stock
import os
send, sent = os.sendfile, []
def rename(old, new, real=os.rename, **kwargs):
    if str(new).endswith(".ckpt"):
        raise OSError(18, "Invalid cross-device link")
    return real(old, new, **kwargs)
def sendfile(out, file, offset, count):
    sent.append(1)
    if len(sent) < 9:
        return send(out, file, offset, count)
    if offset > 0:
        raise OSError(28, "No space left on device")
    return send(out, file, offset, 20000)
os.rename, os.sendfile = rename, sendfile
"""
EXPECTED = "exit 1 with the path and the free space; the checkpoint before is whole, and the run goes on from it"


def broken(folder):
    found = 0
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint.read(path)
        except checkpoint.CheckpointError:
            found += 1
    return found


@pytest.mark.parametrize("words", [(), pytest.param(TWO, marks=pytest.mark.heavy)])
def test_a_full_disk_ends_the_run_and_takes_nothing(start, tmp_path, injected, words):
    run = start("train", *TINY, *words, faults=FULL)
    assert run.wait() == 1, run.said
    folder = tmp_path / "run/checkpoints"
    (said,) = [line for line in run.said.splitlines() if line.startswith("error: ")]
    assert "last.ckpt" in said and "No space left on device" in said and "free" in said
    assert "Traceback" not in run.said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    assert broken(folder) == 0
    assert checkpoint.read(folder / "last.ckpt")["global_step"] == 4
    assert not [p for p in folder.iterdir() if p.suffix != ".ckpt"]
    rest = start("train", *TINY, *words, "resume=auto")
    assert rest.wait() == 0, rest.said
    injected("disk full within a save", EXPECTED)


def test_lightnings_own_writer_leaves_half_a_checkpoint(start, tmp_path, injected):
    run = start("train", *TINY, faults=STOCK)
    assert run.wait() != 0, run.said
    assert broken(tmp_path / "run/checkpoints") == 1
    stock = "Lightning's TorchCheckpointIO: half a file under the final name"
    injected("disk full within a save", EXPECTED, n=0, survived=0, stock=stock)
