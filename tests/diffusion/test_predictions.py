"""EDM's preconditioning on every path, the free velocity field, and what stays the same under another SDE."""

import math

import pytest
import torch
from cases import PREDICTIONS, Fixed, all_paths, build, f64, normal, times_of
from torch import nn

from diffcli import checkpoint
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.prediction import EDM, Velocity
from diffcli.diffusion.sde import OneLevel
from diffcli.networks.mlp import MLP

MODELS = PREDICTIONS | {"edm": EDM, "energy": Energy}
SIZES = pytest.mark.parametrize("sd", [0.1, 0.5, 3.0])


def network() -> MLP:
    torch.manual_seed(0)
    made = MLP([2], width=16, blocks=1)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made.double()


@SIZES
def test_edm_is_karras_table_1_in_sigma(sd):
    sde = build("ve", "geometric")
    model, t = EDM(sde, network(), sd), times_of(build("ve", "geometric"))
    sigma = sde.sigma(t)
    c_skip, c_out = model.skip_and_out(t)
    assert torch.allclose(c_skip, sd**2 / (sigma**2 + sd**2), rtol=1e-12)
    assert torch.allclose(c_out, sigma * sd / (sd**2 + sigma**2).sqrt(), rtol=1e-12)
    assert torch.allclose(model.c_in(t), 1 / (sigma**2 + sd**2).sqrt(), rtol=1e-12)
    assert torch.allclose(model.c_noise(t), sigma.log() / 4, rtol=1e-12)


@all_paths
def test_edm_has_unit_variances_on_every_path(sde, sd=0.3):
    """Of its input, of its target F = (x0 - c_skip xt)/c_out, for data of standard deviation sd; and c_out is the least
    there is, as the target is uncorrelated with the input."""
    model, t = EDM(sde, network(), sd), times_of(sde)
    alpha, sigma, one = sde.alpha(t), sde.sigma(t), torch.ones_like(t)
    c_skip, c_out = model.skip_and_out(t)
    assert torch.allclose(model.c_in(t) ** 2 * ((alpha * sd) ** 2 + sigma**2), one, rtol=1e-12)
    on_data, on_noise = (1 - c_skip * alpha) / c_out * sd, c_skip * sigma / c_out
    fine = sigma / alpha > 1e-4 * sd  # 1 - c_skip alpha cancels below
    assert torch.allclose((on_data**2 + on_noise**2)[fine], one[fine], rtol=1e-6)
    assert ((on_data * alpha * sd - on_noise * sigma) * model.c_in(t))[fine].abs().max() < 1e-6


def test_edm_is_finite_where_the_data_vanish():
    """alpha -> 0: x0_hat = sd F."""
    x, out = normal(0, 3, 2), normal(1, 3, 2)
    model = EDM(OneLevel(1e-150, 1.0), Fixed(out), 0.5)
    assert torch.allclose(model(x, f64(0.5, 0.6, 0.7)), 0.5 * out, rtol=1e-12)
    assert torch.allclose(model.eps(x, f64(0.5, 0.6, 0.7)), x, rtol=1e-12)
    (_, c_noise), *_ = model.network.calls
    assert torch.allclose(c_noise, f64(150 * math.log(10) / 4).expand(3))


@all_paths
def test_edm_of_its_target_is_the_data(sde):
    t = times_of(sde, 24, start=max(sde.t_min, sde.time(f64(6.0)).item()))
    x0, eps = normal(0, len(t), 2), normal(1, len(t), 2)
    xt = sde.perturb(x0, t, eps)
    c_skip, c_out = EDM(sde, network(), 0.7).skip_and_out(t)
    model = EDM(sde, Fixed((x0 - c_skip[:, None] * xt) / c_out[:, None]), 0.7)
    assert torch.allclose(model(xt, t), x0, rtol=1e-9, atol=1e-9)
    assert torch.allclose(model.eps(xt, t), eps, rtol=1e-9, atol=1e-9)
    u = (sde.f(t) * sde.alpha(t))[:, None] * x0 + (sde.dlog_sigma(t) * sde.sigma(t))[:, None] * eps
    assert torch.allclose(model.velocity(xt, t), u, rtol=1e-8, atol=1e-8 * u.abs().max().item())
    assert torch.allclose(Velocity(sde, Fixed(u))(xt, t), x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("own", "other"), [("vp-linear", "ve-geometric"), ("ve-geometric", "vp-cosine")])
def test_every_prediction_is_the_same_model_under_another_sde(name, own, other):
    """At equal lam x0_hat is a function of x/alpha alone; there and back again is the model itself."""
    model, sde = MODELS[name](build(*own.split("-")), network()), build(*other.split("-"))
    rescaled = Rescaled(sde, model)
    u = torch.linspace(0.2, 0.8, 7, dtype=torch.float64) * model.sde.t_max
    t = sde.time(model.sde.lam(u))
    inside = (t > sde.t_min) & (t < sde.t_max)
    assert inside.sum() > 3
    u, t = u[inside], t[inside]
    y = normal(0, len(u), 2)
    x = model.sde.alpha(u)[:, None] * y
    a, b = rescaled(sde.alpha(t)[:, None] * y, t), model(x, u)
    assert torch.allclose(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())
    back = Rescaled(build(*own.split("-")), rescaled)
    for reading in ("forward", "eps", "velocity"):
        a, b = (getattr(m, reading)(x, u) for m in (back, model))
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item()), reading


@all_paths
def test_a_velocity_is_the_network_itself(sde):
    """Bit for bit, where another reading would go through x0_hat; a free one sees x itself, and time ten to one."""
    x, t, out = normal(0, 3, 2), f64(0.3).repeat(3), normal(1, 3, 2)
    model, free = Velocity(sde, Fixed(out)), Velocity(sde, Fixed(out), free=True)
    assert model.posterior_mean and not free.posterior_mean
    for m in (model, free):
        assert torch.equal(m.velocity(x, t), out)
        assert m.rows == 3
    ((seen, c_noise),) = free.network.calls
    assert torch.equal(seen, x)
    assert torch.allclose(c_noise, 10 * t)
    assert torch.allclose(free.velocity_lam(x, t), out / sde.dlam(t)[:, None], rtol=1e-9)


def test_sigma_data_is_measured_and_kept_in_the_checkpoint(cli, tmp_path):
    tiny = ("data=moons", "network=mlp", "network.width=8", "network.blocks=1", "trainer.max_steps=1", "batch_size=8")
    done = cli("train", "prediction=edm", *tiny, "preview.every=0", "out=t")
    assert done.code == 0, done.err
    content = checkpoint.read(tmp_path / "t/checkpoints/last.ckpt")
    sigma_data = content["config"]["denoiser"]["sigma_data"]
    assert f"prediction.sigma_data = {sigma_data:.4g}, measured" in done.out.splitlines()[0]
    assert checkpoint.load_denoiser(tmp_path / "t/checkpoints/last.ckpt").sigma_data == sigma_data
    from diffcli.commands.build import build as made

    data = made(content["config"]["data"], "data")
    split = data.split("train")
    items = data.transform.encode(split.__getitems__(range(len(split)))[0])
    assert sigma_data == pytest.approx((items - items.mean(0)).double().square().mean().sqrt().item(), rel=0.05)
