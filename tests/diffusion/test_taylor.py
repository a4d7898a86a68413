"""dpm_taylor: its derivatives are those of eps along the ODE, for exact models and for networks."""

import math

import pytest
import torch
from cases import build, every_path, f64, mixture_2d, no_noise, noised, normal
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.prediction import EDM, Eps, V, Velocity
from diffcli.diffusion.samplers import DPM1, RK45, DPMTaylor, sample
from diffcli.diffusion.samplers.dpm_taylor import Elementary, along_lam, state_derivative, tangent, total_derivative
from diffcli.networks.dit import DiT
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet


def derivatives(model, x, t, count):
    """eps^(k) along the ODE for k < count, as the sampler makes them."""
    t_jet = along_lam(model.sde, lambda t: t, t[None], count)[0].tolist()
    alpha = (along_lam(model.sde, model.sde.alpha, t[None], count)[0] / model.sde.alpha(t)).tolist()
    e, jet = [model.eps(x, t)], [x]
    with sdpa_kernel(SDPBackend.MATH), Elementary():
        for k in range(1, count):
            jet.append(state_derivative(k, x, e, model.sde.sigma(t).item(), alpha))
            e.append(total_derivative(k, model, jet, t_jet))
    return e


@every_path
def test_derivatives_of_one_gaussian_are_in_closed_form(sde):
    """For N(m, c^2 I) the path is `x - alpha m ~ r`, `r^2 = alpha^2 c^2 + sigma^2`, so that `eps ~ sigma / r`."""
    c, mean, t = 0.4, f64([0.7, -1.2]), f64(0.4004)
    model = Exact(sde, GaussianMixture(f64(1.0), mean, c**2 * torch.eye(2).double()[None]))

    def shape(t):
        return sde.sigma(t) / torch.sqrt((c * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2)

    x = normal(0, 3, 2)
    got, wanted = derivatives(model, x, t[0], 3), along_lam(sde, shape, t, 3)[0] / shape(t)
    for k in range(3):
        assert torch.allclose(got[k], wanted[k] * got[0], rtol=1e-7, atol=1e-9 * got[0].abs().max().item()), k


def test_derivatives_in_lam():
    """Of VP's `alpha = (1 + e^{-2 lam})^{-1/2}`: `alpha' = alpha sigma^2`, `alpha'' = alpha' (1 - 3 alpha^2)`."""
    sde, t, h = build("vp", "cosine"), f64(0.2, 0.5, 0.9), 1e-3
    alpha, s2 = sde.alpha(t), sde.sigma(t) ** 2
    wanted = torch.stack([alpha, alpha * s2, alpha * s2 * (1 - 3 * alpha**2)], 1)
    assert torch.allclose(along_lam(sde, sde.alpha, t, 3), wanted, rtol=1e-9)
    low, mid, high = (sde.time(sde.lam(t) + s) for s in (-h, 0, h))
    wanted = torch.stack([t, (high - low) / (2 * h), (high - 2 * mid + low) / h**2], 1)
    assert torch.allclose(along_lam(sde, lambda t: t, t, 3), wanted, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("pair", [("vp", "linear"), ("flow", "logit"), ("ve", "geometric")], ids=lambda p: p[0])
def test_the_error_of_a_step_has_its_order(pair, order):
    sde = build(*pair)
    model = Exact(sde, mixture_2d())
    x, errors = noised(sde, model.mixture, 16, 0.6), []
    for h in (0.08, 0.04):
        times = sde.time(sde.lam(f64(0.6)) + f64(0.0, h))
        exact = sample(model, RK45(1e-13), x, times, no_noise).x
        got = sample(model, DPMTaylor(order), x, times, no_noise)
        assert got.nfe.tolist() == [order] * 16
        errors.append((got.x - exact).norm(dim=1))
    assert torch.log2(errors[0] / errors[1]).median().item() == pytest.approx(order + 1, abs=0.3)


def test_order_1_is_dpm_solver_1():
    sde, x = build("vp", "linear"), normal(0, 4, 2)
    model, times = Exact(sde, mixture_2d()), f64(0.9, 0.5, 0.1)
    assert torch.allclose(*(sample(model, s, x, times, no_noise).x for s in (DPMTaylor(1), DPM1())), rtol=1e-12)


def lively(network):
    """With weights that are not zero anywhere."""
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    return network.double().eval()


NETWORKS = {
    "mlp": lambda: MLP((2,), width=8, blocks=1),
    "unet": lambda: UNet((1, 4, 4), channels=8, multipliers=[1], blocks=1, attention=[4]),
    "dit": lambda: DiT((1, 4, 4), width=8, depth=1, heads=2),
}


@torch.no_grad()
@pytest.mark.parametrize("prediction", [Eps, V, Velocity, EDM])
@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_of_a_network_are_finite_differences_along_the_ode(name, prediction):
    if prediction is not Eps and name != "mlp":
        pytest.skip("what is before and after the network is the same for each")
    sde, t, h = build("vp", "linear"), f64(0.5)[0], 3e-4  # c_noise turns the embedding in a thousandth of t
    model = prediction(sde, lively(NETWORKS[name]()))
    x = normal(0, 2, *((2,) if name == "mlp" else (1, 4, 4)))
    got, lam = derivatives(model, x, t, 3), sde.lam(t)

    def eps(s):  # one classical step of the ODE from (x, t)
        f = lambda y, l: model.velocity_lam(y, sde.time(l))  # noqa: E731, E741
        k1 = f(x, lam)
        k2 = f(x + s / 2 * k1, lam + s / 2)
        k3 = f(x + s / 2 * k2, lam + s / 2)
        return model.eps(x + s / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + s * k3, lam + s)), sde.time(lam + s))

    m2, m1, z, p1, p2 = (eps(k * h) for k in (-2, -1, 0, 1, 2))
    first, second = (m2 - 8 * m1 + 8 * p1 - p2) / (12 * h), (-m2 + 16 * m1 - 30 * z + 16 * p1 - p2) / (12 * h**2)
    assert torch.allclose(got[1], first, rtol=1e-3, atol=1e-3 * first.abs().max().item())
    assert torch.allclose(got[2], second, rtol=1e-2, atol=1e-2 * second.abs().max().item())


@pytest.mark.parametrize(
    "fn",
    [
        F.silu,
        F.mish,
        lambda x: F.layer_norm(x, (6,), f64(*range(1, 7)), f64(*range(6))),
        lambda x: F.layer_norm(x, (2, 6)),
    ],
    ids=["silu", "mish", "layer_norm", "layer_norm-2"],
)
def test_functions_are_what_they_stand_for(fn):
    """Value, and first and second derivative by differences."""
    x, s, h = normal(0, 3, 2, 6), f64(0.3)[0], 1e-4
    f = lambda s: fn(x * torch.sin(1 + s))  # noqa: E731
    with Elementary():
        value, second = f(s), tangent(tangent(f))(s)
    assert torch.allclose(value, f(s), rtol=1e-12, atol=1e-12)
    assert torch.allclose(second, (f(s + h) - 2 * f(s) + f(s - h)) / h**2, rtol=1e-4, atol=1e-5)


def test_every_order_of_derivative_counts_as_an_evaluation():
    sde = build("vp", "linear")
    model, x = Exact(sde, mixture_2d()), normal(0, 3, 2)
    seen = []
    got = sample(model, DPMTaylor(3), x, f64(0.9, 0.6, 0.4), no_noise, see=lambda x0, t: seen.append(x0.clone()))
    assert got.nfe.tolist() == [6] * 3 and evaluations(model) == 18
    assert all(torch.isfinite(x0).all() for x0 in seen) and torch.equal(seen[0], model(x, f64(0.9)[0]))


def test_what_cannot_be_differentiated_forward_is_refused():
    model = Energy(build("vp", "linear"), MLP((2,), width=8, blocks=1))
    with pytest.raises(ValueError, match=r"^dpm_taylor differentiates the model forward.*sampler=dpm3"):
        DPMTaylor(2).setup(model)
    DPMTaylor(1).setup(model)
    with pytest.raises(ValueError, match="order must lie between 1 and 4, got 5"):
        DPMTaylor(5)
    assert math.isclose(DPMTaylor(4).cost(10), 40)
