"""Networks take what they say they take, start as the zero function, and use what they are told."""

import pytest
import torch

from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet

CASES = {
    "unet-grey": (UNet, [1, 8, 8], dict(channels=8, multipliers=[1, 2])),
    "unet-five-channels-oblong": (UNet, [5, 12, 20], dict(channels=8, multipliers=[1, 1, 2], blocks=2, attention=[6])),
    "unet-one-level-odd": (UNet, [3, 7, 9], dict(channels=6, multipliers=[1], attention=[])),
    "mlp-points": (MLP, [2], dict(width=16, blocks=2)),
    "mlp-images": (MLP, [3, 4, 4], dict(width=16, blocks=2)),
}


def made(case, **more):
    """The network with every weight random, so that nothing is hidden behind the zeroed layers."""
    network, shape, options = CASES[case]
    torch.manual_seed(0)
    net = network(shape, **options, **more)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    return net, torch.randn(6, *shape), torch.linspace(0, 1000, 6)


@pytest.mark.parametrize("case", CASES)
def test_starts_as_the_zero_function(case):
    network, shape, options = CASES[case]
    out = network(shape, **options)(torch.randn(2, *shape), torch.tensor([1.0, 900.0]))
    assert torch.equal(out, torch.zeros(2, *shape))


@pytest.mark.parametrize("case", CASES)
def test_items_are_independent_and_noise_level_matters(case):
    net, x, c = made(case)
    out = net(x, c)
    assert out.shape == x.shape
    assert torch.allclose(net(x[2:3], c[2:3]), out[2:3], atol=1e-4)
    assert (net(x, c.flip(0)) - out).abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_no_label_is_the_last_label(case):
    net, x, c = made(case, classes=3)
    none, zero = net(x, c), net(x, c, label=torch.zeros(6, dtype=torch.int64))
    assert torch.equal(none, net(x, c, label=torch.full((6,), 3)))
    assert (none - zero).abs().max() > 1e-3


def test_attention_reaches_every_pixel():
    """The corner moves with the opposite corner at one level with attention, and does not without."""
    for attention, reached in (([16], True), ([], False)):
        torch.manual_seed(0)
        net = UNet([1, 16, 16], channels=8, multipliers=[1], blocks=1, attention=attention, head_channels=4)
        for p in net.parameters():
            torch.nn.init.normal_(p, 0, 0.3)
        for module in net.modules():  # group norm reaches every pixel too
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x
        x = torch.randn(1, 1, 16, 16, requires_grad=True)
        (gradient,) = torch.autograd.grad(net(x, torch.ones(1))[0, 0, 0, 0], x)
        assert (gradient[0, 0, 15, 15].abs() > 0).item() is reached


def test_dropout_acts_in_training_alone():
    net, x, c = made("mlp-points", dropout=0.5)
    assert not torch.equal(net(x, c), net(x, c))
    net.eval()
    assert torch.equal(net(x, c), net(x, c))
