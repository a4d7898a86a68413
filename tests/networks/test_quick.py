"""A network in the form that evaluates fastest: the same function."""

import pickle

import pytest
import torch

from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.networks.mlp import MLP
from diffcli.networks.quick import Quick


def network() -> MLP:
    """One whose last layer is not zero."""
    found, generator = MLP([4]).requires_grad_(False), torch.Generator().manual_seed(1)
    for p in found.parameters():
        p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return found


@pytest.fixture
def x():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def test_bf16_is_of_the_network_alone(x):
    """What goes in and comes out is float32, and so is all around it; the result is near, and another."""
    net = network()
    plain, low = Eps(VP(Linear()), net), Eps(VP(Linear()), Quick(net, bf16=True))
    for t in (0.01, 0.5, 0.99):
        t = torch.tensor(t, dtype=torch.float64)
        exact, found = plain.eps(x, t), low.eps(x, t)
        assert found.dtype == torch.float32
        assert 0 < (found - exact).norm() / exact.norm() < 0.02
    assert (low.velocity(x, t) - plain.velocity(x, t)).norm() > 0


def test_what_is_differentiated_is_not_compiled(x, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda fn: lambda *a, **k: asked.append(torch.is_grad_enabled()) or fn(*a, **k)
    )
    net, c = Quick(network(), compiled=True), torch.ones(16)
    plain = net(x, c)
    with torch.no_grad():
        assert torch.equal(net(x, c), plain)
    assert asked == [False, False]  # in one mode
    assert net(x.clone().requires_grad_(), c).requires_grad
    torch.func.jvp(lambda x: net(x, c), (x,), (x,))
    torch.func.vmap(lambda x: net(x[None], c[:1]))(x)
    assert len(asked) == 2


def test_another_process_compiles_for_itself(x, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda fn: lambda *a, **k: fn(*a, **k))
    net = Quick(network(), compiled=True)
    there = net(x, torch.ones(16))
    copied = pickle.loads(pickle.dumps(net))
    assert net.code is not None and copied.code is None
    assert torch.equal(copied(x, torch.ones(16)), there)


@pytest.mark.heavy
def test_compiled_code_is_the_same_function(x):
    """It lies as near to the function in float64 as the network itself does, whose last digits are others."""
    net, exact, c = Quick(network(), compiled=True), network().double(), torch.ones(16)
    for at in (x, 3 * x):
        truth = exact(at.double(), c.double())
        compiled, plain = ((found - truth).norm() / truth.norm() for found in (net(at, c), net.inner(at, c)))
        assert compiled < 4 * plain < 1e-5
    assert net.code is not None
