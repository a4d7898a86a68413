"""An image as a condition, in further channels of any network."""

import math

import pytest
import torch
from torch import nn

from diffcli import checkpoint
from diffcli.networks.concatenated import Concatenated
from diffcli.networks.dit import DiT
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet

SHAPE, IMAGE = (2, 4, 4), (3, 4, 4)
WIDE = (6, 4, 4)


class Picked(nn.Module):
    """Returns channels of its input, in the order given, and keeps what else it was told."""

    def __init__(self, *channels):
        super().__init__()
        self.channels, self.told = channels, None

    def forward(self, x, c_noise, **others):
        self.told = others
        return x[:, list(self.channels)]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(5, *SHAPE), torch.rand(5) * 1000, torch.randn(5, *IMAGE)


def awake(network):
    """With random weights where networks start as nothing."""
    torch.manual_seed(1)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network


def test_the_network_sees_the_item_its_image_and_a_one(batch):
    x, c, image = batch
    seen = lambda *channels: Concatenated(Picked(*channels), IMAGE)(x, c, image=image)  # noqa: E731
    assert torch.equal(seen(0, 1, 2, 3, 4, 5), x)
    assert torch.equal(seen(2, 3, 0, 0, 0, 0), image[:, :2])
    assert torch.equal(seen(4, 5, 0, 0, 0, 0), torch.stack([image[:, 2], torch.ones(5, 4, 4)], 1))


@pytest.mark.parametrize("how", ["missing", "nan", "one nan"])
def test_no_image_is_zeros_and_a_zero(batch, how):
    x, c, image = batch
    none = {"missing": None, "nan": torch.full_like(image, math.nan), "one nan": image.clone()}[how]
    if how == "one nan":
        none[:, 1, 2, 3] = math.nan
    for channels in ((2, 3, 0, 0, 0, 0), (4, 5, 0, 0, 0, 0)):
        assert torch.equal(Concatenated(Picked(*channels), IMAGE)(x, c, image=none), torch.zeros_like(x))


def test_an_item_without_image_is_alone_in_that(batch):
    x, c, image = batch
    network = Concatenated(awake(UNet(WIDE, channels=8, multipliers=(1, 2))), IMAGE)
    some = image.clone()
    some[2] = math.nan
    out = network(x, c, image=some)
    kept = [0, 1, 3, 4]
    assert torch.allclose(out[kept], network(x, c, image=image)[kept], atol=1e-6)
    assert torch.allclose(out[2], network(x, c)[2], atol=1e-6)
    zero = torch.where(some.isnan(), 0, some)
    assert not torch.allclose(out[2], network(x, c, image=zero)[2], atol=1e-3)  # a grey image is not none


def test_of_two_outputs_each_has_its_first_channels(batch):
    x, c, image = batch
    out = Concatenated(Picked(*range(6), 5, 0, 2, 3, 4, 5), IMAGE)(x, c, image=image)
    assert torch.equal(out, torch.cat([x, torch.ones(5, 1, 4, 4), x[:, :1]], 1))


def test_other_conditions_go_on(batch):
    x, c, image = batch
    inner, label = Picked(*range(6)), torch.tensor([0, 1, 2, -1, 0])
    Concatenated(inner, IMAGE)(x, c, image=image, label=label)
    assert inner.told == {"label": label}
    network = Concatenated(awake(MLP(WIDE, width=16, blocks=1, classes=3)), IMAGE)
    a, b = network(x, c, image=image, label=label), network(x, c, image=image, label=label.flip(0))
    assert torch.equal(a[2], b[2]) and not torch.allclose(a[1], b[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet(WIDE, channels=8, multipliers=(1, 2), outputs=2),
        lambda: DiT(WIDE, width=16, depth=1, heads=2, outputs=2),
        lambda: MLP(WIDE, width=16, blocks=1, outputs=2),
    ],
)
def test_networks_listen_and_learn(make, batch):
    x, c, image = batch
    network = Concatenated(awake(make()), IMAGE)
    image.requires_grad_()
    out = network(x, c, image=image)
    assert out.shape == (5, 4, 4, 4)
    (grad,) = torch.autograd.grad(out[3].square().sum(), image)
    assert grad[3].abs().min() > 0 and grad[[0, 1, 2, 4]].abs().max() == 0
    assert not torch.allclose(network(x, c, image=image.flip(0)), out)


def test_none_has_finite_gradients(batch):
    x, c, image = batch
    network = Concatenated(awake(UNet(WIDE, channels=8, multipliers=(1,))), IMAGE)
    image[1] = math.nan
    network(x, c, image=image).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "image", "words"),
    [
        (lambda: Concatenated(Picked(0), (3, 4)), None, "images"),
        (lambda: Concatenated(Picked(*range(6)), IMAGE), torch.zeros(5, 3, 4, 5), r"\(5, 3, 4, 4\)"),
        (lambda: Concatenated(Picked(*range(6)), IMAGE), torch.zeros(1, 3, 4, 4), r"\(5, 3, 4, 4\)"),
        (lambda: Concatenated(Picked(0, 1), IMAGE), torch.zeros(5, 3, 4, 4), "return as many"),
    ],
)
def test_what_does_not_fit_is_refused(batch, make, image, words):
    with pytest.raises(ValueError, match=words):
        make()(batch[0], batch[1], image=image)


def test_a_checkpoint_holds_it(batch, tmp_path):
    x, _, image = batch
    mlp = {"_target_": "diffcli.networks.mlp.MLP", "shape": list(WIDE), "width": 16, "blocks": 1}
    node = {
        "_target_": "diffcli.diffusion.prediction.Eps",
        "sde": {"_target_": "diffcli.diffusion.sde.VP", "schedule": {"_target_": "diffcli.diffusion.schedule.Linear"}},
        "network": {"_target_": "diffcli.networks.concatenated.Concatenated", "network": mlp, "image": list(IMAGE)},
    }
    denoiser = awake(checkpoint.build_denoiser(node))
    data = {"_target_": "diffcli.data.image_pairs.ImagePairs", "root": "x", "size": 4}
    state = {f"denoiser.{k}": v for k, v in denoiser.state_dict().items()}
    content = {"format": checkpoint.FORMAT, "config": {"denoiser": node, "data": data}, "shape": list(SHAPE)}
    checkpoint.write(content | {"state_dict": state, "ema": {}}, tmp_path / "a.ckpt")
    loaded, t = checkpoint.load_denoiser(tmp_path / "a.ckpt"), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(loaded(x, t, image=image), denoiser(x, t, image=image).detach())
