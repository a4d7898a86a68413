"""A network of one's own: a package on the path, a yaml in a folder, and trust where its checkpoint is used."""

import sys

import numpy as np
import pytest

SOURCE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, shape: list[int], width: int = 8):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(shape[0] + 1, width), nn.SiLU(), nn.Linear(width, shape[0]))

    def forward(self, x, c_noise):
        import torch

        return self.inner(torch.cat([x, c_noise[:, None] / 1000], dim=1))
"""
YAML = """# a network of my own
_target_: mypackage.Net
shape: null
width: 8
"""
TINY = ("data=moons", "trainer.max_steps=2", "batch_size=16", "preview.every=0")


@pytest.fixture
def hers(tmp_path, monkeypatch):
    """Her --config-dir; mypackage can be imported while the test runs."""
    (tmp_path / "code/mypackage").mkdir(parents=True)
    (tmp_path / "code/mypackage/__init__.py").write_text(SOURCE)
    (tmp_path / "myconf/network").mkdir(parents=True)
    (tmp_path / "myconf/network/mynet.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield tmp_path / "myconf"
    sys.modules.pop("mypackage", None)


def test_her_network_trains_and_samples_with_trust(cli, hers, tmp_path, monkeypatch):
    done = cli("train", "--config-dir", hers, "network=mynet", "network.width=6", *TINY, "out=run")
    assert done.code == 0, done.err
    ckpt = "ckpt=run/checkpoints/last.ckpt"
    sys.modules.pop("mypackage")
    for words, hint in (
        ((), "trust=mypackage"),
        (("trust=otherpackage",), "trust=mypackage"),
        (("trust=diffcli",), "trust=mypackage"),
    ):
        for command in ("sample", "nll"):
            refusal = cli(command, ckpt, *words)
            assert refusal.code == 3, refusal.err
            assert "mypackage.Net" in refusal.err
            assert hint in refusal.err
            assert "Traceback" not in refusal.err
    assert "mypackage" not in sys.modules  # what is not trusted is not imported
    assert not (tmp_path / "outputs").exists()
    drawn = cli("sample", ckpt, "trust=mypackage", "n=3", "steps=2", "out=drawn")
    assert drawn.code == 0, drawn.err
    assert np.load(tmp_path / "drawn/samples.npy").shape == (3, 2)
    sys.modules.pop("mypackage")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path / "code")])
    refusal = cli("sample", ckpt, "trust=mypackage")
    assert refusal.code == 3
    assert "cannot be imported" in refusal.err


def test_her_options_are_known(cli, hers):
    refusal = cli("train", "--config-dir", hers, "network=mynett", *TINY)
    assert refusal.code == 2
    assert "mynet" in refusal.err
    assert cli("train", "network=mynet", *TINY).code == 2
    assert cli("train", "--config-dir", hers, "network=mynet", "network.widht=6", *TINY).code == 2
