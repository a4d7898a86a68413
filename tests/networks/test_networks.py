"""Networks take what they say they take, start as the zero function, and use what they are told."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.networks.diffusers_unet import DiffusersUNet
from diffcli.networks.dit import DiT
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet

pytest.importorskip("diffusers")

SMALL = dict(
    block_out_channels=[8, 16],
    down_block_types=["DownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "UpBlock2D"],
    norm_num_groups=4,
    layers_per_block=1,
)

CASES = {
    "unet-grey": (UNet, [1, 8, 8], dict(channels=8, multipliers=[1, 2])),
    "unet-five-channels-oblong": (UNet, [5, 12, 20], dict(channels=8, multipliers=[1, 1, 2], blocks=2, attention=[6])),
    "unet-one-level-odd": (UNet, [3, 7, 9], dict(channels=6, multipliers=[1], attention=[])),
    "unet-blocks-fourier": (
        UNet,
        [2, 8, 12],
        dict(channels=8, multipliers=[1, 2], resample="block", embedding="fourier", fourier_scale=0.001),
    ),
    "dit": (DiT, [1, 8, 8], dict(width=16, depth=2, heads=2)),
    "dit-oblong": (DiT, [3, 6, 9], dict(patch=3, width=12, depth=1, heads=3, embedding="fourier", fourier_scale=0.001)),
    "diffusers": (DiffusersUNet, [1, 8, 8], dict(config=SMALL)),
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
    return net.eval(), torch.randn(6, *shape), torch.linspace(1, 1000, 6)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_starts_as_the_zero_function(case, outputs):
    network, shape, options = CASES[case]
    out = network(shape, **options, outputs=outputs)(torch.randn(2, *shape), torch.tensor([1.0, 900.0]))
    assert torch.equal(out, torch.zeros(2, outputs * shape[0], *shape[1:]))


@pytest.mark.parametrize("case", CASES)
def test_a_second_output_is_another_one(case):
    net, x, c = made(case, outputs=2)
    first, second = net(x, c).chunk(2, dim=1)
    assert first.shape == second.shape == x.shape
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_items_are_independent_and_noise_level_matters(case):
    net, x, c = made(case)
    out = net(x, c)
    assert out.shape == x.shape
    assert torch.allclose(net(x[2:3], c[2:3]), out[2:3], atol=1e-4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(net(x[order], c[order]), out[order], atol=1e-4)
    assert (net(x, c.flip(0)) - out).abs().max() > 1e-2


@pytest.mark.parametrize("more", [{}, dict(vector=2)], ids=["alone", "beside-a-vector"])
@pytest.mark.parametrize("case", CASES)
def test_no_label_is_minus_one(case, more):
    net, x, c = made(case, classes=3, **more)
    none, zero = net(x, c), net(x, c, label=torch.zeros(6, dtype=torch.int64))
    assert torch.equal(none, net(x, c, label=torch.full((6,), -1)))
    assert (none - zero).abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_vector_matters_and_a_row_of_nan_is_none(case):
    net, x, c = made(case, vector=3)
    vector = torch.randn(6, 3)
    out, none = net(x, c, vector=vector), net(x, c)
    assert (out - none).abs().amax(dim=tuple(range(1, x.ndim))).min() > 1e-3
    vector[2] = torch.nan
    mixed = net(x, c, vector=vector)
    assert torch.allclose(mixed[2], none[2], atol=1e-5)
    assert torch.allclose(mixed[[0, 1, 3, 4, 5]], out[[0, 1, 3, 4, 5]], atol=1e-5)
    gradients = torch.autograd.grad(mixed.square().sum(), list(net.parameters()), allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", CASES)
def test_a_condition_that_does_not_fit_is_refused(case):
    plain, x, c = made(case)
    net, _, _ = made(case, classes=3, vector=2)
    zeros = torch.zeros(6, dtype=torch.int64)
    for refused, cond, sentence in (
        (plain, dict(label=zeros), "takes no label"),
        (plain, dict(vector=torch.zeros(6, 2)), "network.vector=0"),
        (net, dict(label=zeros + 3), "from -1 to 2"),
        (net, dict(label=zeros - 2), "from -1 to 2"),
        (net, dict(label=zeros[:3]), r"\(6,\) of int64"),
        (net, dict(label=zeros.float()), "of int64"),
        (net, dict(vector=torch.zeros(6, 3)), r"\(6, 2\), got \(6, 3\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            refused(x, c, **cond)


@pytest.mark.parametrize("case", CASES)
def test_doubles_agree_with_floats(case):
    net, x, c = made(case, classes=3, vector=2)
    cond = dict(label=torch.tensor([0, 1, 2, -1, 0, 1]))
    out = net(x, c, vector=torch.ones(6, 2), **cond)
    wide = net.double()(x.double(), c.double(), vector=torch.ones(6, 2).double(), **cond)
    assert wide.dtype == torch.float64
    assert (wide - out).abs().max() < 1e-3 * wide.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_differentiates_twice(case):
    """The gradient of `|grad_x sum F|^2` along a direction of the weights is its difference quotient."""
    net, x, c = made(case)
    net, x, c = net.double(), x[:2].double().requires_grad_(), c[3:5].double()
    weights = {name: p.detach() for name, p in net.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in weights.items()}

    def value(step):
        moved = {name: p + step * directions[name] for name, p in weights.items()}
        out = torch.func.functional_call(net, moved, (x, c))
        return torch.autograd.grad(out.sum(), x, create_graph=True)[0].square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (exact,) = torch.autograd.grad(value(step), step)
        h = 1e-6
        quotient = (value(h) - value(-h)) / (2 * h)
    assert exact.abs() > 1e-3
    assert torch.isclose(exact, quotient, rtol=1e-4)


@pytest.mark.parametrize("case", ["unet-grey", "unet-blocks-fourier", "dit", "diffusers", "mlp-points", "mlp-images"])
def test_learns_four_items(case):
    """Four targets for one input: what does not tell them apart by their labels cannot halve the loss of zero."""
    network, shape, options = CASES[case]
    torch.manual_seed(0)
    net = network(shape, **options, classes=4)
    x, target, label = torch.randn(1, *shape).expand(4, *shape), torch.randn(4, *shape), torch.arange(4)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(40):
        loss = (net(x, torch.full((4,), 300.0), label=label) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (target - target.mean(0)).square().mean() > 0.6 * target.square().mean()
    assert loss < 0.5 * target.square().mean()


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


@pytest.mark.parametrize("case", ["mlp-points", "unet-grey", "unet-blocks-fourier", "dit"])
def test_dropout_acts_in_training_alone(case):
    net, x, c = made(case, dropout=0.5)
    net.train()
    assert not torch.equal(net(x, c), net(x, c))
    net.eval()
    assert torch.equal(net(x, c), net(x, c))
