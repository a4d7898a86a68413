"""Laws of the parts: embeddings, resampling blocks, patches and their positions."""

import math

import pytest
import torch

from diffcli.networks import unet
from diffcli.networks.dit import DiT, patchify, positions, unpatchify
from diffcli.networks.embedding import Condition, Fourier, Sinusoidal
from diffcli.networks.unet import Attention, ResampleBlock, UNet


def test_fourier_features_make_a_gaussian_kernel():
    """`2/dim <f(a), f(b)> -> exp(-2 pi^2 scale^2 (a - b)^2)`; the error of 2^14 features has a deviation below 2^-7.5."""
    torch.manual_seed(0)
    scale, half = 0.02, 2**14
    features = Fourier(2 * half, scale)(torch.linspace(0, 100, 11).double())
    kernel = features @ features.T / half
    distance = torch.linspace(0, 100, 11).double()[:, None] - torch.linspace(0, 100, 11).double()
    expected = torch.exp(-2 * (math.pi * scale * distance) ** 2)
    assert torch.allclose(kernel.diagonal(), torch.ones(11).double())
    assert (kernel - expected).abs().max() < 5 * 2**-7.5
    assert expected.min() < 1e-3 < 0.4 < expected[0, 1]


def test_fourier_features_are_drawn_once_and_stored():
    torch.manual_seed(0)
    one, other = Condition(8, embedding="fourier"), Condition(8, embedding="fourier")
    c = torch.linspace(0, 1000, 5)
    assert torch.equal(one(c), one(c))
    assert not torch.equal(one.noise[0](c), other.noise[0](c))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(c), other(c))
    assert "noise.0.freqs" not in Condition(8).state_dict()  # the sinusoids follow from the dimension alone


@pytest.mark.parametrize("embedding", [Sinusoidal(8), Fourier(8, 0.01)], ids=["sinusoidal", "fourier"])
def test_an_embedding_lies_on_circles(embedding):
    cos, sin = embedding(torch.linspace(0, 1000, 50).double()).chunk(2, dim=1)
    assert torch.allclose(cos**2 + sin**2, torch.ones(50, 4).double())


def test_embeddings_that_cannot_be_are_refused():
    for make, sentence in (
        (lambda: Sinusoidal(7), "even"),
        (lambda: Fourier(7, 1.0), "even"),
        (lambda: Fourier(8, 0.0), "fourier_scale must be above 0"),
        (lambda: Condition(8, embedding="other"), "sinusoidal or fourier"),
        (lambda: Condition(8, classes=-1), "classes must be at least 0"),
        (lambda: Condition(8, vector=-1), "vector must be at least 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()


@pytest.mark.parametrize(("up", "factor"), [(True, 2), (False, 0.5)], ids=["up", "down"])
def test_a_resampling_block_starts_as_the_resampling(up, factor):
    torch.manual_seed(0)
    block = ResampleBlock(8, 16, 0.0, up)
    x, c = torch.randn(2, 8, 6, 4), torch.randn(2, 16)
    assert torch.equal(
        block(x, c), torch.nn.functional.interpolate(x, scale_factor=factor, mode="nearest" if up else "area")
    )
    for p in block.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    assert block(x, c).shape == (2, 8, int(6 * factor), int(4 * factor))
    assert not torch.allclose(block(x, c), block(x, -c), atol=1e-3)  # the condition reaches it


def test_up_undoes_down_on_flat_pieces():
    down, up = ResampleBlock(4, 8, 0.0, up=False), ResampleBlock(4, 8, 0.0, up=True)
    x, c = torch.randn(1, 4, 3, 3), torch.zeros(1, 8)
    assert torch.allclose(down(up(x, c), c), x)


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_the_unet_walks_the_resolutions_down_and_up(resample):
    net, seen = UNet([1, 16, 8], channels=8, multipliers=[1, 2, 2], resample=resample), []
    for layer in (*net.down, *net.middle, *net.up):
        layer.register_forward_hook(lambda module, arguments, out: seen.append(out.shape[2]))
    net(torch.randn(1, 1, 16, 8), torch.ones(1))
    assert seen == [16, 8, 8, 4, 4, 4, 4, 4, 4, 8, 8, 8, 16, 16, 16]


def test_patches_come_back_and_are_in_reading_order():
    x = torch.randn(2, 3, 6, 4)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(unpatchify(tokens, 2, (3, 6, 4)), x)
    for row in range(3):
        for column in range(2):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(tokens[:, 2 * row + column], patch.flatten(1))


def test_positions_tell_the_patches_apart_and_shifts_alike():
    """The inner product of two positions depends on their distance alone, and is largest for the same one."""
    rows, columns = 5, 7
    p = positions(32, rows, columns).double().view(rows, columns, 32)
    kernel = torch.einsum("ijc,klc->ijkl", p, p)
    assert torch.allclose(kernel[1, 1, 3, 4], kernel[0, 2, 2, 5])
    assert not torch.isclose(kernel[0, 0, 0, 3], kernel[0, 0, 3, 3])
    flat = kernel.view(rows * columns, -1)
    assert torch.allclose(flat.diagonal(), torch.tensor(16.0).double())
    assert (flat - 1e9 * torch.eye(rows * columns)).max() < 16 - 0.1


def test_only_positions_tell_a_transformer_where_a_patch_is():
    torch.manual_seed(0)
    net = DiT([1, 6, 6], width=16, depth=2, heads=2).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    x, c, order = torch.randn(2, 1, 6, 6), torch.tensor([5.0, 600.0]), torch.randperm(9)

    def permuted(images):
        return unpatchify(patchify(images, 2)[:, order], 2, (1, 6, 6))

    assert (net(permuted(x), c) - permuted(net(x, c))).abs().max() > 0.1
    net.places.zero_()
    assert torch.allclose(net(permuted(x), c), permuted(net(x, c)), atol=1e-4)


def test_a_transformer_block_starts_as_the_identity():
    net = DiT([1, 4, 4], width=8, depth=1, heads=2)
    h = torch.randn(2, 4, 8)
    assert torch.equal(net.blocks[0](h, torch.randn(2, 8)), h)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(shape=[2]), r"takes images \(C, H, W\)"),
        (dict(patch=3), "does not divide the data's 8x8"),
        (dict(patch=0), "patch must be at least 1"),
        (dict(width=18, heads=3), "divisible by 4 and by heads = 3"),
        (dict(width=16, heads=3), "divisible by 4 and by heads = 3"),
        (dict(depth=0), "depth must be at least 1"),
        (dict(dropout=1.0), r"dropout must lie in \[0, 1\)"),
        (dict(outputs=0), "outputs must be at least 1"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_a_transformer_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DiT(**dict(shape=[1, 8, 8]) | options)


def test_attention_is_the_same_by_products_and_by_torch(monkeypatch):
    """Values and gradients; the projection out of it starts as zero, so it is given weights."""
    torch.manual_seed(0)
    net, x = Attention(16, heads=2).double(), torch.randn(3, 16, 4, 6, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(net.out.weight)

    def found():
        out = net(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])]

    ours = found()
    monkeypatch.setattr(unet, "SHORT", 0)
    monkeypatch.setattr(unet, "_products", None)
    for a, b in zip(ours, found(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
