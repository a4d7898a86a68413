"""Flow matching between two data sets: the least loss, the ODE of the exact field, and where samples start."""

import pytest
import torch
from cases import build, f64, no_noise, normal
from torch import nn

from diffcli.data.base import TensorItems
from diffcli.data.transform import Identity, Levels
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.loss import Flow, TrainingSet
from diffcli.diffusion.loss.flow import bridge
from diffcli.diffusion.numeric import derivative
from diffcli.diffusion.prediction import Velocity
from diffcli.diffusion.samplers import DDIM, RK45, sample
from diffcli.diffusion.sde import Path
from diffcli.randomness import Draw
from diffcli.sampling import Starts, draw_samples
from diffcli.training.coupling import Independent, OptimalTransport

PATHS = pytest.mark.parametrize("path", [("flow", "logit"), ("vp", "linear")], ids="-".join)
NOISE = pytest.mark.parametrize("noise", [0.0, 0.7])
M0, M1 = f64(1.0, -0.5), f64(-2.0, 0.3)
R0, R1 = f64(1.2, 0.0, 0.5, 0.4).view(2, 2), f64(0.3, 0.2, 0.0, 0.9).view(2, 2)  # x = m + R z


class Between(nn.Module):
    """E[alpha' x0 + sigma' x1 + gamma' z | x_t] of two independent Gaussians: linear in x_t."""

    def __init__(self, sde, noise):
        super().__init__()
        self.sde, self.noise, self.extra = sde, noise, lambda x: 0.0
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))  # says the dtype

    def moments(self, t):
        """Mean (n, 2) and covariance (n, 2, 2) of x_t, and those of the velocity with x_t."""
        c0, c1, eye = R0 @ R0.T, R1 @ R1.T, torch.eye(2, dtype=torch.float64)
        a, s = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        da, ds = a * self.sde.f(t)[:, None], s * self.sde.dlog_sigma(t)[:, None]
        g = self.noise * (a * s).sqrt()
        dg = self.noise * (da * s + a * ds) / (2 * (a * s).sqrt())
        cov = sum((p * q)[..., None] * c for p, q, c in ((a, a, c0), (s, s, c1), (g, g, eye)))
        cross = sum((p * q)[..., None] * c for p, q, c in ((a, da, c0), (s, ds, c1), (g, dg, eye)))
        return a * M0 + s * M1, cov, da * M0 + ds * M1, cross

    def forward(self, x, c_noise):
        mean, cov, velocity, cross = self.moments(c_noise / 10)
        return velocity + (cross @ torch.linalg.solve(cov, (x - mean)[..., None]))[..., 0] + self.extra(x)


def field(path, noise) -> Velocity:
    sde = build(*path)
    return Velocity(sde, Between(sde, noise), free=True)


def source(x0, draw, training):
    return M1 + draw.normal("source", x0.shape, x0.dtype) @ R1.T


def lean(model, loss, x0, extra, d=0.1):
    """The mean of `2 (u - target) . extra` over items and its standard error, by central differences of the loss."""
    values = []
    for sign in (1, -1):
        model.network.extra = lambda x, sign=sign: sign * d * extra(x)
        values.append(loss(model, x0, Draw(0, 0)).detach())
    each = (values[0] - values[1]) / (2 * d)
    return each.mean().item(), each.std().item() / len(each) ** 0.5


@PATHS
@NOISE
def test_the_loss_is_least_at_the_conditional_mean(path, noise):
    """Its residual is orthogonal to any field, and another field costs its own mean square more."""
    model, loss = field(path, noise), Flow(Independent(), source, noise)
    x0 = M0 + normal(5, 40_000, 2) @ R0.T
    fields = {"one": torch.ones_like, "x": lambda x: x, "sin": lambda x: torch.sin(2 * x.flip(1))}
    for name, extra in fields.items():
        value, error = lean(model, loss, x0, extra)
        assert abs(value) < 4.5 * error, (name, value, error)
    losses = []
    for size in (0.0, 0.5):
        model.network.extra = lambda x, size=size: size * torch.ones_like(x)
        losses.append(loss(model, x0, Draw(0, 0)).mean().item())
    assert losses[1] - losses[0] == pytest.approx(0.5, abs=0.1)  # 0.5^2 in each of two dimensions
    model.network.noise = noise + 1.5  # the field of another bridge is seen
    model.network.extra = lambda x: 0.0
    value, error = lean(model, loss, x0, fields["x"])
    assert abs(value) > 8 * error


@PATHS
@NOISE
def test_the_exact_field_carries_one_gaussian_to_the_other(path, noise):
    """The ODE's map is affine; with it the moments at t_max become those at t_min, which are the data's but for t_min."""
    model = field(path, noise).requires_grad_(False)
    sde, ends = model.sde, f64(model.sde.t_max, 0.02)
    mean, cov, *_ = model.network.moments(ends)
    start = torch.cat([mean[:1], mean[:1] + torch.eye(2, dtype=torch.float64)])
    x = sample(model, RK45(1e-6), start, ends, no_noise).x
    a = (x[1:] - x[0]).T
    assert torch.allclose(x[0], mean[1], atol=1e-4)
    assert torch.allclose(a @ cov[0] @ a.T, cov[1], atol=1e-4)
    assert sde.sigma(ends)[0] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("path", [("flow", "logit"), ("vp", "cosine"), ("subvp", "linear")], ids="-".join)
def test_the_bridge_vanishes_at_both_ends_and_knows_its_slope(path):
    sde = build(*path)
    t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)[1:-1]
    gamma, slope = bridge(sde, t, 0.4)
    assert torch.allclose(slope, derivative(lambda t: bridge(sde, t, 0.4)[0], t), rtol=1e-6)
    ends = bridge(sde, f64(sde.t_min, sde.t_max), 0.4)[0]
    assert (ends < 0.5 * gamma.max()).all()
    if path[0] == "flow":
        assert torch.allclose(gamma, 0.4 * (t * (1 - t)).sqrt())


def test_transport_pairs_the_batch_nearer_and_changes_neither_side():
    x0, x1 = M0 + normal(1, 128, 2) @ R0.T, source(normal(0, 128, 2), Draw(0, 1), True)
    same, moved = OptimalTransport(128)(x0, x1, None)
    assert torch.equal(same, x0)
    assert torch.equal(moved.sort(0).values, x1.sort(0).values)
    assert (same - moved).square().sum(1).mean() < 0.9 * (x0 - x1).square().sum(1).mean()


def test_the_loss_takes_the_coupled_pairs():
    """With each item paired with itself, x0 = x1, the target is (alpha' + sigma') x0: zero on the straight path."""

    class Same:
        def __call__(self, x0, x1, draw, label=None):
            return x0, x0

    sde = build("flow", "logit")
    model = Velocity(sde, Between(sde, 0.0), free=True)
    model.network.forward = lambda x, c_noise: torch.zeros_like(x)
    assert Flow(Same(), source)(model, normal(0, 50, 2), Draw(0, 0)).max() < 1e-20


def test_what_cannot_be_trained_is_refused():
    data, flow = TrainingSet(lambda: normal(0, 4, 2), (2,)), Flow(Independent(), source)
    for sde in (build("ve", "geometric"), Path("1 - t/2", "t")):
        with pytest.raises(ValueError, match="a path that ends in its items"):
            flow.setup(Velocity(sde, nn.Identity(), free=True), data)
    sde = build("flow", "logit")
    with pytest.raises(ValueError, match="source= trains a free field"):
        flow.setup(Velocity(sde, nn.Identity()), data)
    flow.setup(Velocity(sde, nn.Identity(), free=True), data)
    with pytest.raises(ValueError, match="noise must be at least 0, got -1"):
        Flow(Independent(), source, -1.0)
    with pytest.raises(ValueError, match="noise= is of a source"):
        Flow(Independent(), noise=0.1)


def test_sample_i_starts_at_item_i_whatever_the_batch():
    model, items = field(("flow", "logit"), 0.0).requires_grad_(False), TensorItems(normal(2, 7, 2))
    starts, times, found = Starts(items, Identity(), model.sde), UniformLam()(model.sde, 3), {}
    for size in (16, 32):
        seen = []
        drawn = draw_samples(
            model, DDIM(), times, (2,), 40, 0, size, starts, first=5,
            callback=lambda b, i, x, seen=seen: seen.append(x) if i == 0 else None, dtype=torch.float64,
        )  # fmt: skip
        found[size] = torch.cat([batch.x for batch in drawn])
        assert torch.equal(torch.cat(seen), items.x[[i % 7 for i in range(5, 45)]])
    assert torch.equal(found[16], found[32])


def test_starts_are_in_the_sources_own_space():
    """Level centres of the source, whatever the data's levels are."""
    starts = Starts(TensorItems(torch.tensor([[0], [15]], dtype=torch.uint8)), Levels(16), build("flow", "logit"))
    assert torch.equal(starts([0, 1, 2]).flatten(), torch.tensor([-15 / 16, 15 / 16, -15 / 16]))
    assert starts.raw([3]).item() == 15
