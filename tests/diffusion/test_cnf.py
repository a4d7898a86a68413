"""Maximum likelihood through the ODE: closed forms, the two gradients, the probes, the memory, and the samplers' map."""

import pytest
import torch
from cases import build, f64, generator, no_noise, normal
from torch import nn
from torchdiffeq import odeint

from diffcli.diffusion.density import divergence
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.loss import CNF, TrainingSet
from diffcli.diffusion.loss.cnf import Field
from diffcli.diffusion.prediction import Eps, Velocity
from diffcli.diffusion.samplers import DDIM, DPM2, RK45, Heun, sample
from diffcli.errors import NumericalError
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet
from diffcli.randomness import Draw, ItemNoise
from diffcli.training.neural_ode import NeuralODE

BOTH = pytest.mark.parametrize("gradient", ["adjoint", "backprop"])


class Linear(nn.Module):
    """v = A x, for every t."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(0.7 * normal(3, 2, 2))

    def forward(self, x, c_noise):
        return x @ self.a.T


class Wave(nn.Module):
    """A smooth nonlinear field that depends on t."""

    def __init__(self, d: int = 2, width: int = 6):
        super().__init__()
        self.a, self.b = nn.Parameter(0.5 * normal(4, width, d)), nn.Parameter(0.5 * normal(5, d, width))
        self.c = nn.Parameter(normal(6, width))

    def forward(self, x, c_noise):
        return torch.tanh(x @ self.a.T + self.c * c_noise[:, None] / 20) @ self.b.T


class Given:
    """A draw whose probes are known."""

    def __init__(self, probe):
        self.probe = probe

    def uniform(self, purpose, shape, dtype=torch.float32):
        return (1 - self.probe) / 2 * torch.ones(shape)


class Kept:
    """Counts the bytes of saved tensors that are alive."""

    def __init__(self):
        self.bytes = 0

    def pack(self, tensor):
        counter, size = self, tensor.numel() * tensor.element_size()

        class Box:
            def __del__(self):
                counter.bytes -= size

        self.bytes += size
        box = Box()
        box.tensor = tensor
        return box


def cnf(integrate=None, **options) -> CNF:
    return CNF(integrate or NeuralODE(), **dict(divergence="exact", tol=1e-8) | options)


def free(network, sde="vp", schedule="linear") -> Velocity:
    return Velocity(build(sde, schedule), network, free=True)


def gradient_of(loss, model, x, draw=None):
    model.zero_grad()
    value = loss(model, x, draw or Draw(0, 0))
    value.mean().backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@BOTH
@pytest.mark.parametrize("path", [("vp", "linear"), ("flow", "logit")], ids="-".join)
def test_a_linear_field_has_the_log_density_of_a_gaussian(path, gradient):
    """x1 = e^{A T} x0, so p = N(0, (e^{A T})^-1 (e^{A T})^-T): value, and gradient in A by the matrix exponential's own."""
    model, x = free(Linear(), *path), normal(0, 8, 2)
    got, grad = gradient_of(cnf(gradient=gradient), model, x)
    a = model.network.a.detach().clone().requires_grad_()
    span = model.sde.t_max - model.sde.t_min
    flow = torch.linalg.matrix_exp(a * span)
    truth = torch.distributions.MultivariateNormal(torch.zeros(2).double(), precision_matrix=flow.T @ flow)
    value = -truth.log_prob(x)
    value.mean().backward()
    assert torch.allclose(got, value.detach(), rtol=1e-6)
    assert relative(grad, a.grad.flatten()) < 1e-5


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_adjoint_is_backpropagation_to_tolerance(divergence):
    """Their difference falls with tol.  Both are compared at equal probes."""
    model, x = free(Wave()), normal(1, 6, 2)
    _, exact = gradient_of(cnf(tol=1e-9, gradient="backprop", divergence=divergence), model, x)
    errors = []
    for tol in (1e-2, 1e-4, 1e-6):
        _, grad = gradient_of(cnf(tol=tol, gradient="adjoint", divergence=divergence), model, x)
        errors.append(relative(grad, exact))
    assert errors[0] > errors[1] > errors[2], errors
    assert errors[0] > 50 * errors[2], errors
    assert errors[2] < 3e-4, errors


@BOTH
@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("midpoint", 2)])
def test_fixed_steps_converge_with_their_order(solver, order, gradient):
    model, x = free(Wave()), normal(1, 6, 2)
    truth, slope = gradient_of(cnf(gradient="backprop"), model, x)
    found = [gradient_of(cnf(solver=solver, steps=n, gradient=gradient), model, x) for n in (4, 8)]
    for which, exact in enumerate((truth, slope)):
        coarse, fine = (relative(pair[which], exact) for pair in found)
        assert coarse / fine > 2 ** (order - 0.7)


def test_all_sign_probes_average_to_the_exact_divergence():
    """E e e^T = I: over the four probes of two dimensions the value and its gradient are the exact ones."""
    model, x, fixed = free(Wave()), normal(1, 5, 2), dict(solver="rk4", steps=6, gradient="backprop")
    value, grad = gradient_of(cnf(**fixed), model, x)
    probes = [f64(a, b) for a in (-1, 1) for b in (-1, 1)]
    loss = cnf(divergence="hutchinson", **fixed)
    values, grads = zip(*(gradient_of(loss, model, x, Given(p)) for p in probes), strict=True)
    assert torch.allclose(torch.stack(values).mean(0), value, rtol=1e-12)
    assert relative(torch.stack(grads).mean(0), grad) < 1e-12
    assert (values[0] - value).abs().max() > 1e-2  # one alone is not


def test_the_probe_is_one_of_signs_for_each_item():
    seen = []

    def spy(field, state, *_, **__):
        seen.append(field.probe)
        return state

    for step in range(2):
        cnf(spy, divergence="hutchinson")(free(Wave()), normal(0, 500, 2), Draw(0, step))
    for probe in seen:
        assert set(probe.unique().tolist()) == {-1.0, 1.0}
        assert (probe.mean(0).abs() < 4 / 500**0.5).all()
    assert not torch.equal(*seen)


@pytest.mark.heavy
def test_value_is_the_likelihood_of_nll():
    """Integrated in lam by our own solver there, in t by torchdiffeq here; a VE prior is wide, and flow stops at 0.999."""
    for path in (("vp", "linear"), ("ve", "geometric"), ("flow", "logit")):
        model, x = free(Wave(), *path).requires_grad_(False), normal(2, 6, 2)
        with torch.no_grad():
            loss = cnf(tol=1e-6)(model, x, Draw(0, 0))
            found = Likelihood("exact", tol=1e-6)(model, x, ItemNoise(0, range(6), (2,), torch.float64))
        assert torch.allclose(-loss, found.log_prob, rtol=1e-4, atol=1e-4), path
        assert not loss.requires_grad


@pytest.mark.parametrize(
    ("sampler", "order"), [(DDIM(), 1), (Heun("sigma"), 2), (DPM2(), 2)], ids=["ddim", "heun", "dpm2"]
)
def test_samplers_converge_to_the_map_of_the_field(sampler, order):
    """They step in lam or sigma/alpha through readings of the field; the ODE they solve is dx/dt = v."""
    model = free(Wave()).requires_grad_(False)
    sde = model.sde
    errors, x1 = [], normal(3, 5, 2)
    with torch.no_grad():
        path = odeint(lambda t, x: model.velocity(x, t), x1, UniformLam()(sde, 1), rtol=1e-8, atol=1e-8)
        for steps in (50, 100):
            got = sample(model, sampler, x1, UniformLam()(sde, steps), no_noise).x
            errors.append((got - path[-1]).norm().item() / x1.norm().item())
    assert errors[1] < (0.03 if order == 1 else 0.003), errors
    assert errors[0] / errors[1] > 2 ** (order - 0.4), errors


def test_adaptive_sampling_inverts_the_flow():
    model = free(Wave()).requires_grad_(False)
    sde, x0 = model.sde, normal(3, 5, 2)
    with torch.no_grad():
        x1, _ = NeuralODE()(Field(model, None, {}), (x0, x0.new_zeros(5)), 1e-3, sde.t_max, "backprop", "rk45", 1e-7, 1)
    assert torch.allclose(sample(model, RK45(1e-7), x1, f64(sde.t_max, 1e-3), no_noise).x, x0, atol=1e-4)


@BOTH
def test_memory_of_the_adjoint_does_not_grow_with_steps(gradient):
    """Bytes that the graph still holds for the backward pass when the forward one is over."""
    model, x = free(Wave(8, 16)), normal(1, 32, 8)
    held = {}
    for steps in (10, 80):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda box: box.tensor):
            loss = cnf(solver="rk4", steps=steps, gradient=gradient, divergence="hutchinson")(model, x, Draw(0, 0))
        held[steps] = kept.bytes
        assert loss.requires_grad
    assert held[10] > 0
    assert held[80] == held[10] if gradient == "adjoint" else held[80] > 6 * held[10]


def test_attention_can_be_trained_through():
    """Its fused kernel has no double backward: the math kernel is taken."""
    torch.manual_seed(0)
    network = UNet([1, 4, 4], channels=8, multipliers=[1], head_channels=8)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    model, x = free(network), normal(0, 2, 1, 4, 4).float()
    found = {
        gradient: gradient_of(cnf(gradient=gradient, solver="midpoint", steps=3, divergence="hutchinson"), model, x)[1]
        for gradient in ("adjoint", "backprop")
    }
    attention = dict(network.named_parameters())
    assert any("qkv" in name and p.grad.abs().max() > 0 for name, p in attention.items())
    assert relative(found["adjoint"], found["backprop"]) < 0.1


def test_low_precision_does_not_reach_the_solver():
    model, x = free(MLP([2], width=8, blocks=1)), normal(0, 16, 2).float()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    loss = cnf(solver="rk4", steps=3)
    exact = loss(model, x, Draw(0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(model, x, Draw(0, 0))
    assert torch.equal(low, exact)


def test_exact_divergence_is_the_trace_of_the_jacobian():
    w, x = normal(0, 3, 3), normal(1, 4, 3).requires_grad_()
    u = torch.sin(x @ w.T)
    trace = (torch.cos(x @ w.T) * w.diag()).sum(1)
    assert torch.allclose(divergence(u, x), trace, rtol=1e-12)


def test_refuses_what_it_cannot_train():
    def setup(model):
        cnf().setup(model, TrainingSet(lambda: normal(0, 4, 2), (2,)))

    sde = build("vp", "linear")
    setup(Velocity(sde, MLP([2], width=8), free=True))
    with pytest.raises(ValueError, match="a free field, prediction=velocity prediction.free=true"):
        setup(Velocity(sde, MLP([2], width=8)))
    with pytest.raises(ValueError, match="a free field"):
        setup(Eps(sde, MLP([2], width=8)))
    with pytest.raises(ValueError, match="network.dropout=0"):
        setup(Velocity(sde, MLP([2], width=8, dropout=0.1), free=True))
    with pytest.raises(ValueError, match="free field"):
        Rescaled(build("ve", "geometric"), free(Wave()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(divergence="x"), "divergence must be one of exact, hutchinson, got x"),
        (dict(gradient="x"), "gradient must be one of adjoint, backprop, got x"),
        (dict(solver="heun"), "solver must be one of rk45, rk4, midpoint, got heun"),
        (dict(tol=0.0), "tol must lie between 0 and 1, got 0.0"),
        (dict(steps=0), "steps must be at least 1, got 0"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_bad_values(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        cnf(**options)


@BOTH
def test_a_field_that_cannot_be_solved_is_given_up(gradient):
    model, x = free(Wave()), normal(0, 4, 2)
    with pytest.raises(NumericalError, match="more than 30 evaluations"):
        gradient_of(cnf(NeuralODE(30), gradient=gradient), model, x)
    with torch.no_grad():
        model.network.b *= float("nan")
    with pytest.raises(NumericalError, match="not finite at t ="):
        gradient_of(cnf(gradient=gradient), model, x)


def test_draws_are_functions_of_the_step():
    model, x = free(Wave()), torch.randn(4, 2, generator=generator(0)).double()
    loss = cnf(divergence="hutchinson", tol=1e-5)
    a, b, c = (loss(model, x, Draw(0, step)).detach() for step in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
