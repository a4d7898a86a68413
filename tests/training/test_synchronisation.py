"""A training step asks its device for nothing: the host reads a step's figures during the next one, and nothing else changes."""

import csv
import traceback

import pytest
import torch
from torch.overrides import TorchFunctionMode

from diffcli import checkpoint
from diffcli.commands.prepare import build_parts
from diffcli.randomness import Draw
from diffcli.training.module import Steps, Training
from diffcli.training.transfer import Reading
from tests.commands.test_configs import composed, options

ASKING = {"item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "masked_select", "unique", "equal", "allclose"}
ASKING |= {"__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__", "is_nonzero", "bincount"}


class Asking(TorchFunctionMode):
    """Notes what makes a host wait for its device: values that are read, and copies to or from it that are not left to themselves.

    Here "meta" stands for a GPU, where there is one; else whatever a tensor is asked counts.
    """

    def __init__(self, device="cpu"):
        super().__init__()
        self.device, self.found = device, []

    def _note(self, name):
        where = [f for f in traceback.extract_stack()[:-2] if "/torch/" not in f.filename]
        self.found.append(f"{name} in {where[-1].filename}:{where[-1].lineno}")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        there = [a for a in args if isinstance(a, torch.Tensor) and a.device.type == self.device]
        if name in ASKING and there:
            self._note(name)
        result = func(*args, **kwargs)
        if self.device == "meta" and isinstance(result, torch.Tensor) and result.device.type == "meta":
            here = [a for a in args if isinstance(a, torch.Tensor) and a.device.type == "cpu"]
            if (name == "to" and here and not kwargs.get("non_blocking")) or name in (
                "tensor",
                "as_tensor",
                "new_tensor",
            ):
                self._note(name)
            if name in ("__getitem__", "index_select", "gather", "take") and any(a.ndim for a in here):
                self._note(name)
        return result


TINY = ("data.n=60", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=6")
LOSSES = [
    (f"loss={name}",) for name in options("loss") if name not in ("cnf", "ot_flow", "vlb")
]  # which ask by their nature
LOSSES += [("loss=dsm", f"sde={sde}") for sde in ("ve", "subvp", "edm", "flow", "ou")]
LOSSES += [("loss=edm", "sde=edm", "prediction=edm"), ("condition=label", "network.classes=2", "drop=0.5")]
NEEDED = {
    "loss=flow": ("sde=flow",),
    "loss=ddpm_simple": ("schedule=ddpm",),
    "loss=esm": ("data=mixture",),
    "loss=edm": ("sde=edm", "prediction=edm"),
}


@pytest.mark.parametrize("words", LOSSES, ids=",".join)
def test_a_loss_asks_its_device_for_nothing(words, monkeypatch):
    needed = [w for w in NEEDED.get(words[0], ()) if w.partition("=")[0] not in {v.partition("=")[0] for v in words}]
    data = () if any(w.startswith("data=") for w in needed) else ("data=moons",)
    parts = build_parts(composed("train", *data, *TINY, *needed, *words))
    module = Training(parts.denoiser, parts.loss, parts.data, parts.optim, 5, 6, condition=parts.condition)
    monkeypatch.setattr(Draw, "generator", lambda self, *_, **__: None)  # there is none for a device that is not there
    batch = tuple(a.to("meta") for a in module.items("train").__getitems__(range(6)))
    module.to("meta")
    with Asking("meta") as asking:
        module.losses(batch, Draw(0, 0, 0, "meta"))[0].mean().backward()
        asking.found.clear()  # what is taken there once
        module.losses(batch, Draw(0, 1, 0, "meta"))[0].mean().backward()
    assert asking.found == []


RUN = (
    "train", "data=moons", *TINY, "trainer.max_steps=12", "trainer.log_every_n_steps=1", "trainer.val_check_interval=5",
    "preview.every=4", "preview.n=4", "preview.steps=2", "checkpoint.every=5", "checkpoint.keep=3", "optim.warmup=2",
)  # fmt: skip


def metrics(path):
    with (path / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")}
            for row in csv.DictReader(file)
        ]


def test_to_read_a_step_behind_changes_nothing(cli, tmp_path, monkeypatch):
    """Rows, weights and averages are the same to the bit, in a resumed run too."""
    assert cli(*RUN, "out=plain").code == 0
    monkeypatch.setattr(Steps, "lag", 1)
    done = cli(*RUN, "out=behind")
    assert done.code == 0, done.err
    rest = cli(*RUN, "resume=behind/checkpoints/step0000005.ckpt", "out=rest")
    assert rest.code == 0, rest.err
    expected = metrics(tmp_path / "plain")
    assert len([row for row in expected if row["loss"]]) == 12
    assert metrics(tmp_path / "behind") == expected
    assert metrics(tmp_path / "rest") == [row for row in expected if int(row["step"]) >= (4 if row["val_loss"] else 5)]
    plain = checkpoint.read(tmp_path / "plain/checkpoints/last.ckpt")
    for name in ("behind", "rest"):
        found = checkpoint.read(tmp_path / name / "checkpoints/last.ckpt")
        assert all(torch.equal(found[part][k], v) for part in ("state_dict", "ema") for k, v in plain[part].items())
        assert found["spike"] == plain["spike"]
        steps = [state["step"] for state in found["optimizer_states"][0]["state"].values()]
        assert {float(step) for step in steps} == {12.0}


def test_a_step_behind_asks_for_nothing(cli, monkeypatch):
    """In the whole loop, with Lightning's part of it, from the 3rd step to the 9th."""
    asking = Asking()
    read = Reading.read

    def unseen(self):
        with torch._C.DisableTorchFunction():
            return read(self)

    def starts(self, batch, index):
        if self.trainer.global_step == 2:
            asking.__enter__()
        if self.trainer.global_step == 9:
            asking.__exit__(None, None, None)

    monkeypatch.setattr(Reading, "read", unseen)
    monkeypatch.setattr(Steps, "lag", 1)
    monkeypatch.setattr(Steps, "on_train_batch_start", starts)
    quiet = ("trainer.val_check_interval=100", "preview.every=0", "checkpoint.every=100")
    done = cli(*RUN, *quiet, "out=run")
    assert done.code == 0, done.err
    assert [
        found for found in asking.found if "training/data.py" not in found
    ] == []  # the order, which is the host's own
