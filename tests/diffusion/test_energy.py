"""A scalar energy: its gradient is the score, it has no curl, it can be learned, and it works wherever a score does."""

import torch
from cases import build, every_path, f64, generator, mixture_2d, no_noise, normal
from torch import nn

from diffcli.diffusion.density import asymmetry, score_fpe
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.loss import DSM
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import DPM2, sample
from diffcli.diffusion.sde import OneLevel
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet
from diffcli.randomness import Draw, ItemNoise


def mlp(seed: int = 0, d: int = 2, **options) -> MLP:
    """A network whose output is not zero, in float64."""
    torch.manual_seed(seed)
    network = MLP([d], width=16, blocks=1, **options)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network.double()


@every_path
def test_score_is_the_numerical_gradient_of_the_energy(sde):
    """Central differences of order h^4."""
    model, h = Energy(sde, mlp()), 1e-3
    t = torch.linspace(max(sde.t_min, 0.05), sde.t_max, 4, dtype=torch.float64)
    x = normal(0, 4, 2) * (sde.alpha(t) + sde.sigma(t))[:, None]
    h = h * (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()
    with torch.no_grad():
        columns = []
        for i in range(2):
            step = h[:, None] * torch.eye(2, dtype=torch.float64)[i]
            e = {k: model.energy(x + k * step, t) for k in (-2, -1, 1, 2)}
            columns.append((8 * (e[1] - e[-1]) - (e[2] - e[-2])) / (12 * h))
        gradient = torch.stack(columns, 1)
        assert torch.allclose(model.score(x, t), -gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item())


def test_it_starts_as_no_noise_and_its_eps_has_unit_scale():
    sde = build("ve", "geometric")
    zero = Energy(sde, MLP([2], width=8, blocks=1))
    t = f64(0.1, 0.5, 0.9)
    x = normal(0, 3, 2) * sde.sigma(t)[:, None]
    assert torch.equal(zero.eps(x.float(), t), torch.zeros(3, 2))
    eps = Energy(sde, mlp()).eps(x, t).abs().mean(1)
    assert eps.max() / eps.min() < 10  # sigma goes from 0.003 to 17


@every_path
def test_the_jacobian_of_its_score_is_symmetric(sde):
    t = torch.linspace(max(sde.t_min, 0.05), sde.t_max, 5, dtype=torch.float64)
    x = normal(1, 5, 3)
    assert asymmetry(Energy(sde, mlp(d=3)).score, x, t).max() < 1e-10
    assert asymmetry(Eps(sde, mlp(d=3)).score, x, t).min() > 1e-3  # a plain network is no gradient


def test_gradients_are_those_of_the_formula():
    """d/dtheta of a function of the score, against the same thing written out."""
    sde, network = build("vp", "linear"), mlp()
    t, xt = f64(0.2, 0.5, 0.8), normal(0, 3, 2)
    Energy(sde, network).score(xt, t).square().sum().backward()
    got = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    x = xt.clone().requires_grad_()  # VP: c_in = 1
    e = (x * network(x, 1000 * t)).sum(1) / sde.sigma(t)
    (slope,) = torch.autograd.grad(e.sum(), x, create_graph=True)
    network.zero_grad()
    slope.square().sum().backward()
    truth = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(got) == len(truth) > 5
    for a, b in zip(got, truth, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def test_no_graph_is_made_where_gradients_are_off():
    model, x, t = Energy(build("vp", "linear"), mlp()), normal(0, 3, 2), f64(0.5)[0]
    with torch.no_grad():
        quiet = model.score(x, t)
    assert not quiet.requires_grad
    assert not Energy(model.sde, mlp()).requires_grad_(False).score(x, t).requires_grad
    loud = model.score(x, t)
    assert loud.requires_grad
    assert torch.allclose(quiet, loud.detach(), rtol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_learns_the_log_density_of_a_mixture():
    """exp(-E) up to a factor: the differences of -E are those of log p_t."""
    torch.manual_seed(0)
    truth = Exact(build("vp", "linear"), mixture_2d())
    model = Energy(truth.sde, MLP([2], width=48, blocks=1))
    data, _ = truth.mixture.sample(300 * 192, generator(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=300)
    for step in range(300):
        optimizer.zero_grad()
        DSM("simple")(model, data[step * 192 :][:192].float(), Draw(0, step)).mean().backward()
        optimizer.step()
        decay.step()
    spread, wrong = [], []
    with torch.no_grad():
        for at in (0.3, 0.5, 0.7):
            t = f64(at)[0]
            x = truth.sde.perturb(truth.mixture.sample(2000, generator(1))[0], t, normal(2, 2000, 2))
            log_p = truth.log_prob(x, t)
            error = -model.energy(x.float(), t).double() - log_p
            spread.append(log_p.std().item())
            wrong.append((error - error.mean()).square().mean().sqrt().item())
    for s, w in zip(spread, wrong, strict=True):
        assert w < 0.25 * s, (wrong, spread)


def test_samplers_and_likelihood_take_it():
    """Second derivatives inside the divergence, gradients off outside."""
    sde = build("vp", "linear")
    model = Energy(sde, mlp()).requires_grad_(False).eval()
    with torch.no_grad():
        x = sample(model, DPM2(), normal(0, 4, 2), UniformLam()(sde, 4), no_noise).x
        found = Likelihood("exact", solver="rk4", steps=4)(model, x, ItemNoise(0, range(4), (2,), torch.float64))
        probed = Likelihood(probes=2, solver="rk4", steps=4)(model, x, ItemNoise(0, range(4), (2,), torch.float64))
    assert torch.isfinite(found.log_prob).all()
    assert (probed.log_prob - found.log_prob).abs().max() < 20 * probed.std_err.max() + 1e-9
    other = Rescaled(build("ve", "geometric"), model)
    t = f64(0.5)
    u = sde.time(other.sde.lam(t))
    y = normal(3, 1, 2)
    assert torch.allclose(other(y, t), model(sde.alpha(u)[:, None] * y, u))


def test_at_sigma_zero_the_score_is_finite():
    """Hyvarinen's model of the data itself."""
    t = f64(0.5).repeat(3)
    for sigma in (0.0, 0.1):
        model = Energy(OneLevel(1.0, sigma), mlp())
        assert torch.isfinite(model.energy(normal(0, 3, 2), t)).all()
        assert torch.isfinite(model.score(normal(0, 3, 2), t)).all(), sigma


def test_low_precision_and_dropout_train():
    model, x = Energy(build("vp", "linear"), MLP([2], width=16, blocks=1, dropout=0.2)), normal(0, 8, 2).float()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = DSM()(model, x, Draw(0, 0)).mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    exact = DSM()(model.eval(), x, Draw(0, 0)).mean()
    with torch.autocast("cpu", torch.bfloat16):
        low = DSM()(model, x, Draw(0, 0)).mean()
    assert abs(low - exact) < 0.05 * exact


def test_attention_is_differentiated_twice():
    torch.manual_seed(0)
    network = UNet([1, 4, 4], channels=8, multipliers=[1], head_channels=8)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    model = Energy(build("vp", "linear"), network)
    assert model.double_backward
    DSM()(model, normal(0, 2, 1, 4, 4).float(), Draw(0, 0)).mean().backward()
    assert any("qkv" in name and p.grad.abs().max() > 0 for name, p in network.named_parameters())


def test_what_it_is_at_different_levels_need_not_fit_together():
    """A residual that a trained energy could lower, and an untrained one does not meet."""
    sde = build("vp", "linear")
    assert score_fpe(Energy(sde, mlp()).score, sde, normal(0, 4, 2), f64(0.4).repeat(4)).relative.min() > 1e-3
