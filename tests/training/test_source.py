"""Training between two data sets: which items of the source are drawn, what is learned, and exact resumption."""

import numpy as np
import pytest
import torch

from diffcli.data.digits import Digits
from diffcli.data.mixture import Mixture
from diffcli.data.points import Points
from diffcli.diffusion.loss import Flow
from diffcli.diffusion.prediction import Velocity
from diffcli.diffusion.schedule import Logit
from diffcli.diffusion.sde import Flow as Flat
from diffcli.metrics.energy_distance import energy_distance
from diffcli.randomness import Draw
from diffcli.training.coupling import Independent
from diffcli.training.source import Source

TINY = (
    "source=moons", "data=circles", "network.width=8", "network.blocks=1", "batch_size=16", "preview.every=0",
    "trainer.max_steps=4", "trainer.limit_val_batches=1",
)  # fmt: skip


def test_items_are_drawn_uniformly_from_the_split_that_is_trained_on():
    source, x0 = Source(Points("moons", n=20)), torch.zeros(8000, 2)
    for training, split in ((True, "train"), (False, "val")):
        items = source.data.split(split).x
        found = source(x0, Draw(0, 3), training)
        which = (found[:, None] == items).all(2)
        assert (which.sum(1) == 1).all()  # each is an item of this split
        counts = which.sum(0)
        assert (counts - 400).abs().max() < 4.5 * (400 * 0.95) ** 0.5
    assert torch.equal(source(x0, Draw(0, 3), True), source(x0, Draw(0, 3), True))
    for other in (Draw(0, 4), Draw(1, 3), Draw(0, 3, rank=1)):
        assert not torch.equal(source(x0, Draw(0, 3), True), source(x0, other, True))


class Noted(Draw):
    """A Draw that notes what each of its numbers is for."""

    def generator(self, purpose, rank=None):
        self.purposes = [*getattr(self, "purposes", []), purpose]
        return super().generator(purpose, rank)


def test_no_two_things_of_a_step_share_their_randomness():
    """Not the item, its noise on the way, the time, nor the noise within a level."""
    loss = Flow(Independent(), Source(Digits()), noise=0.3)
    x0, draw = torch.zeros(4, 1, 8, 8), Noted(0, 0)
    loss(Velocity(Flat(Logit()), Zero(), free=True), x0, draw)
    assert len(draw.purposes) == len(set(draw.purposes)) == 4


class Zero(torch.nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


def test_items_on_levels_are_dequantised_as_the_data_are():
    x0 = torch.zeros(50, 1, 8, 8, dtype=torch.float64)
    plain, noisy = (Source(Digits(), dequantize)(x0, Draw(0, 0), True) for dequantize in (False, True))
    assert plain.dtype == torch.float64
    u = (noisy - plain) * 17 / 2  # in levels, from their centres
    assert u.abs().max() <= 0.5 + 1e-5
    assert u.std() == pytest.approx(12**-0.5, rel=0.05)


@pytest.mark.parametrize("more", [("loss=flow", "source_noise=0.3"), ("loss=ot_flow",)], ids=lambda m: m[0])
def test_a_resumed_run_is_the_uninterrupted_one(cli, tmp_path, more):
    whole = cli("train", *TINY, *more, "checkpoint.every=1", "checkpoint.keep=9", "out=whole")
    assert whole.code == 0, whole.err
    half = "whole/checkpoints/step0000002.ckpt"
    assert cli("train", *TINY, *more, "out=rest", f"resume={half}").code == 0
    a, b = (torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "rest"))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    if more[0] == "loss=ot_flow":
        return
    for words, sentence in (
        (("source.noise=0.2",), "was trained with another source: source.noise was 0.05, is now 0.2"),
        (("source=circles",), "was trained with another source: source.name was moons, is now circles"),
        (("source_noise=0.9",), "resume_allow=[source_noise] lets them change"),
    ):
        done = cli("train", *TINY, *more, *words, "out=rest2", f"resume={half}")
        assert (done.code, sentence in done.err) == (2, True), done.err


def test_a_small_model_carries_one_data_set_to_the_other(cli, tmp_path):
    """The energy distance to held-out data falls to a twentieth of the source's own."""
    words = (
        "network.width=48",
        "network.blocks=2",
        "batch_size=128",
        "optim.lr=5e-3",
        "optim.warmup=20",
        "ema.decay=0.98",
        "preview.every=0",
    )
    done = cli("train", "source=moons", "data=mixture", "loss=ot_flow", *words, "trainer.max_steps=250", "out=t")
    assert done.code == 0, done.err
    ckpt = "ckpt=t/checkpoints/last.ckpt"
    assert cli("sample", ckpt, "n=1000", "out=s", "batch_size=1000").code == 0
    starts, ends = (torch.from_numpy(np.load(tmp_path / "s" / f"{name}.npy")) for name in ("source", "samples"))
    assert torch.equal(starts, Points("moons").split("test").x[:1000])
    held_out = Mixture().split("test").x[:4000].double()
    before, after = (energy_distance(x.double(), held_out).item() for x in (starts, ends))
    assert after < before / 20, (before, after)
    again = cli("sample", ckpt, "n=8", "out=s2", "input=s/source.npy")
    assert again.code == 0, again.err
    assert np.allclose(np.load(tmp_path / "s2/samples.npy"), ends[:8], atol=1e-5)
