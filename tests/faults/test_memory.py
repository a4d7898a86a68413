"""The memory of sample, nll and evaluate does not grow with the number of items."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from diffcli.commands.partial import Partial

spec = importlib.util.spec_from_file_location("forked", Path(__file__).with_name("forked.py"))
forked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forked)

BATCHES, FEW = 100, 2
D = 1024  # dimensions of a sample


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("wide.npz", weights=[1.0], means=np.zeros((1, D)), covs=np.eye(D)[None])
    np.save("x.npy", np.random.default_rng(0).normal(size=(200, D)))
    return tmp_path


WIDE = ("network=exact", "network.file=wide.npz", "data=array", "data.file=x.npy")
WIDE += ("sampler=ddim", "steps=1", "batch_size=256")
LINE = ("network=exact", "data=mixture", "data.name=line", "data.n=25600", "batch_size=256", "also=elbo")
LINE += ("likelihood.solver=rk4", "likelihood.steps=1", "likelihood.divergence=exact")
COMMANDS = {  # words, the items of a batch, bytes that all that a batch leaves takes
    "sample": (("sample", *WIDE), 256, 256 * 4 * D),
    "evaluate": (("evaluate", *WIDE, "repeats=1", "compared=100", "neighbours=false"), 256, 256 * 4 * D),
    "nll": (("nll", *LINE), 256, 256 * 8 * (64 + 12)),
}


def hold():
    """The control: everything is kept, and joined at the end."""
    held, append, remove = [], Partial.append, Partial.remove

    def kept(self, **columns):
        held.append(columns)
        append(self, **columns)

    def joined(self):
        if held:
            _ = {name: np.concatenate([columns[name] for columns in held]) for name in held[0]}
        remove(self)

    Partial.append, Partial.remove = kept, joined


@pytest.mark.heavy
@pytest.mark.parametrize("command", ["sample", "nll", "evaluate"])
def test_a_hundred_batches_take_no_more_memory_than_two(folder, command, injected):
    words, size, each = COMMANDS[command]
    bound = BATCHES * each // 3
    few, many, held = (
        forked.run(*words, f"n={count * size}", f"out={name}", before=before)
        for name, count, before in (("few", FEW, int), ("many", BATCHES, int), ("held", BATCHES, hold))
    )
    assert few[0] == many[0] == held[0] == 0
    print(f"{command}: {few[1] / 1e6:.1f} MB, {many[1] / 1e6:.1f} MB, all held {held[1] / 1e6:.1f} MB")
    assert many[1] - few[1] < bound
    assert held[1] - few[1] > bound  # it would have shown
    injected(
        f"{BATCHES} batches of {command} instead of {FEW}",
        "no more memory",
        stock=f"held and joined: {(held[1] - few[1]) / 1e6:.0f} MB more, here {max(0, many[1] - few[1]) / 1e6:.0f} MB",
    )
