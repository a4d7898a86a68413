"""Divergences: the trace of the Jacobian, in any shape, in any portions, and the quadratic forms of random probes."""

import weakref

import pytest
import torch
from cases import normal
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from diffcli.diffusion.likelihood import ExactDivergence, Hutchinson
from diffcli.diffusion.likelihood.divergence import Graph
from diffcli.randomness import ItemNoise


def field(x):
    flat = x.flatten(1)
    return (torch.sin(flat) * flat.sum(1, keepdim=True) + flat.roll(1, 1) ** 2).view_as(x)


def trace(fn, x):
    jacobian = torch.autograd.functional.jacobian(lambda y: fn(y).flatten(1).sum(0), x).flatten(2)  # (d, B, d)
    return torch.einsum("ibi->b", jacobian)[:, None]


def item_noise(x):
    return ItemNoise(0, range(len(x)), x.shape[1:], torch.float64)


class Cube(torch.autograd.Function):
    """x^3, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * torch.from_numpy(x.detach().numpy()) ** 2 + 0.0 * grad.sum().item()


@pytest.mark.parametrize("event", [(3,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("memory", [1, 1000, 2**30])
def test_exact_is_the_trace_of_the_jacobian(event, memory):
    """One product at a time, some, or all at once."""
    x = normal(0, 4, *event)
    u, div = ExactDivergence(memory)(field, x, None)
    assert torch.equal(u, field(x)) and not u.requires_grad and div.shape == (4, 1)
    assert torch.allclose(div, trace(field, x), rtol=1e-12, atol=1e-12)


def test_exact_through_convolution_and_attention():
    torch.manual_seed(0)
    conv, mix = nn.Conv2d(2, 4, 3, padding=1).double(), nn.Linear(16, 48).double()

    def network(x):
        h = torch.nn.functional.silu(conv(x)).flatten(2)  # (B, 4, 16)
        q, k, v = mix(h).chunk(3, dim=2)
        return scaled_dot_product_attention(q, k, v).reshape(len(x), 4, 4, 4)[:, :2]

    x = normal(0, 3, 2, 4, 4)
    assert torch.allclose(ExactDivergence()(network, x, None)[1], trace(network, x), rtol=1e-10, atol=1e-10)


def test_an_operation_without_a_batching_rule_is_taken_one_by_one():
    x = normal(0, 3, 4)
    assert torch.allclose(ExactDivergence()(Cube.apply, x, None)[1], (3 * x**2).sum(1, keepdim=True), rtol=1e-12)
    graph = Graph(Cube.apply, x, 2.0**30)
    graph.products(torch.ones(2, 3, 4, dtype=torch.float64))
    assert not graph.batched


def test_a_field_without_x_has_no_divergence():
    x = normal(0, 3, 4)
    for divergence in (ExactDivergence(), Hutchinson(2)):
        _, div = divergence(lambda y: torch.ones_like(y), x, divergence.probes(x, item_noise(x)))
        assert torch.equal(div, torch.zeros_like(div))


@pytest.mark.parametrize("divergence", [ExactDivergence(), Hutchinson(2)], ids=["exact", "hutchinson"])
def test_nothing_of_a_graph_outlives_its_call(divergence):
    """exp and sigmoid keep what they return; a graph held by what it holds is never freed."""
    inside, x = [], normal(0, 3, 4)

    def network(x):
        h = torch.exp(torch.sigmoid(x))
        inside.append(weakref.ref(h))
        return h * x

    divergence(network, x, divergence.probes(x, item_noise(x)))
    assert inside[0]() is None


def test_a_field_that_is_a_gradient_itself():
    """u = grad of sum(exp(-x^2/2)): what the inner graph keeps is differentiated once more."""
    x = normal(0, 3, 4)

    def network(x):
        return torch.autograd.grad(torch.exp(-(x**2) / 2).sum(), x, create_graph=True)[0]

    u, div = ExactDivergence()(network, x, None)
    assert torch.allclose(u, -x * torch.exp(-(x**2) / 2), rtol=1e-12)
    assert torch.allclose(div[:, 0], ((x**2 - 1) * torch.exp(-(x**2) / 2)).sum(1), rtol=1e-12)


@pytest.mark.parametrize("width", [1, 16])
def test_memory_bounds_the_products_taken_at_once(width):
    """A graph keeps x once in each of `width` tensors, 8 bytes a number; as many products fit."""
    x, sizes = normal(0, 5, 32), []

    def wide(x):
        return sum(torch.sin((k + 1) * x) for k in range(width))

    class Watched(ExactDivergence):
        pass

    whole, real = Graph(wide, x, 1e4 * width * 1.01), Graph.products

    def products(self, vectors):
        sizes.append(len(vectors))
        return real(self, vectors)

    assert whole.chunk == int(1e4 * width * 1.01 // (8 * 5 * 32 * width))
    Graph.products = products
    try:
        Watched(1e4 * width * 1.01)(wide, x, None)
    finally:
        Graph.products = real
    assert max(sizes) == whole.chunk and sum(sizes) == 32


@pytest.mark.parametrize("memory", [1, 2**30])
@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_the_quadratic_form_of_each_probe(noise, memory):
    a, x = normal(1, 5, 5), normal(0, 7, 5)
    divergence = Hutchinson(3, noise, memory)
    probes = divergence.probes(x, item_noise(x))
    _, div = divergence(lambda x: x @ a.T, x, probes)
    assert torch.allclose(div, torch.einsum("bki,ij,bkj->bk", probes, a, probes), rtol=1e-12)


@pytest.mark.parametrize(("noise", "fourth"), [("rademacher", 1.0), ("gaussian", 3.0)])
def test_moments_of_the_probes(noise, fourth):
    """E e = 0, E e e^T = I, and the fourth moment, 1 or 3; all probes and items their own."""
    x = normal(0, 200, 10)
    e = Hutchinson(8, noise).probes(x, item_noise(x))
    n = e.numel() ** 0.5
    assert e.shape == (200, 8, 10) and abs(e.mean()) < 4 / n
    assert e.square().mean().item() == pytest.approx(1, abs=4 * (fourth - 1) ** 0.5 / n + 1e-12)
    assert (e**4).mean().item() == pytest.approx(fourth, abs=4 * 10 / n * (fourth > 1) + 1e-12)
    flat = e.reshape(1600, 10)
    off = flat.T @ flat / 1600 - torch.eye(10) * flat.square().mean()
    assert off.fill_diagonal_(0).abs().max() < 4.5 / 40
    assert len({tuple(row.tolist()) for row in e[:, :, :].reshape(-1, 10)}) > (1500 if noise == "gaussian" else 800)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(noise):
    a = normal(1, 6, 6)
    x = normal(0, 2000, 6)
    _, div = (h := Hutchinson(2, noise))(lambda x: x @ a.T, x, h.probes(x, item_noise(x)))
    assert abs(div.mean() - a.trace()) < 4 * div.std() / div.numel() ** 0.5
