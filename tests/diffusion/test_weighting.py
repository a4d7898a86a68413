"""Weights at the ends of every path, and the learned one: its optimum, its gradient, its place in a training."""

from typing import get_args, get_type_hints

import pytest
import torch
from cases import build, every_path, f64, generator, times_of

from diffcli.diffusion.loss import DSM, TrainingSet
from diffcli.diffusion.time_sampling import time_samplers
from diffcli.diffusion.weighting import EDM, Learned, weights


@pytest.mark.parametrize("weight", weights())
@every_path
def test_factors_are_finite_down_to_the_ends(sde, weight):
    """Where sigma^4 or e^{2 lam} would be 0 or infinite in float32, w/sigma^2 is neither."""
    factor = weights(sigma_data=0.5)[weight].factor(sde, times_of(sde)).float()
    assert torch.isfinite(factor).all() and (factor > 0).all()


def test_v_is_snr_plus_one_on_vp():
    sde, t = build("vp", "cosine"), f64(0.01, 0.3, 0.6, 0.99)
    on_x0 = weights()["v"].factor(sde, t) * torch.exp(2 * sde.lam(t))
    assert torch.allclose(on_x0, torch.exp(2 * sde.lam(t)) + 1, rtol=1e-12)


def test_the_names_are_those_of_the_annotations():
    hints = get_type_hints(DSM.__init__)
    assert get_args(hints["weight"]) == tuple(weights())
    assert get_args(hints["time"]) == tuple(time_samplers())


def test_sigma_data_is_measured():
    items = torch.randn(500, 3, generator=generator(0)) * 0.3 + 5
    weight, sde = EDM(), build("vp", "linear")
    weight.setup(sde, TrainingSet(lambda: items, (3,)))
    assert weight.sigma_data == pytest.approx(items.double().var(correction=0).item() ** 0.5, rel=1e-9)
    with pytest.raises(ValueError, match="do not vary"):
        EDM().setup(sde, TrainingSet(lambda: torch.full((7, 1), 0.1), (1,)))
    with pytest.raises(ValueError, match="above 0"):
        EDM(-1.0)


def test_learned_is_kendalls_loss():
    """bracket / e^u + d u; the gradient in the bracket is 1/e^u, and at u = 0 it is `simple`."""
    sde, t, bracket = build("vp", "linear"), f64(0.1, 0.5, 0.9), f64(2.0, 3.0, 1.0).requires_grad_()
    weight = Learned().double()
    assert torch.equal(weight(sde, t, bracket, 4), bracket)
    torch.nn.init.normal_(weight.weight, std=0.1, generator=generator(0))
    torch.nn.init.constant_(weight.bias, 0.7)
    u = weight.u(sde, t)
    assert u.std() > 0.01
    found = weight(sde, t, bracket, 4)
    assert torch.allclose(found, bracket / u.exp() + 4 * u, rtol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), bracket)
    assert torch.allclose(gradient, 1 / u.exp(), rtol=1e-12)


def test_learned_finds_the_mean_bracket_of_a_dimension():
    """At its optimum e^u is E[bracket]/d at each level, whatever the law of the bracket."""
    sde, d = build("vp", "linear"), 6
    t = torch.linspace(sde.t_min, sde.t_max, 4000, dtype=torch.float64)
    mean = 0.05 + 0.4 * torch.sigmoid(-sde.lam(t))
    bracket = (mean[:, None] * torch.empty(4000, d).double().exponential_(generator=generator(1))).sum(1)
    weight = Learned().double()
    solver = torch.optim.LBFGS(weight.parameters(), max_iter=25, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = weight(sde, t, bracket, d).mean()
        loss.backward()
        return loss

    solver.step(closure)
    middle = sde.lam(t).abs() < 4  # where most of the times are
    # 4,000 values, 65 coefficients: a relative error of at most sqrt(65 / (4,000 d)) = 5 %, and what the features cannot follow
    error = (weight.u(sde, t).detach().exp() / mean - 1)[middle]
    assert error.square().mean().sqrt() < 0.09


TINY = (
    "data=moons", "data.n=300", "network.width=8", "network.blocks=1", "batch_size=32", "preview.every=0",
    "trainer.max_steps=6", "checkpoint.every=1", "checkpoint.keep=9", "trainer.limit_val_batches=1", "optim.warmup=0",
    "loss.weight=learned",
)  # fmt: skip


def test_learned_is_trained_stored_and_resumed(cli, tmp_path):
    """In the optimiser, in the checkpoint, bit for bit after a resumption, and out of the way of sampling."""
    assert cli("train", *TINY, "out=whole").code == 0
    middle = tmp_path / "whole/checkpoints/step0000003.ckpt"
    done = cli("train", *TINY, "out=rest", f"resume={middle}")
    assert done.code == 0, done.err
    half, whole, rest = (
        torch.load(path, weights_only=True)
        for path in (middle, *(tmp_path / run / "checkpoints/last.ckpt" for run in ("whole", "rest")))
    )
    for name in ("loss.weight.weight", "loss.weight.bias"):
        for group in ("state_dict", "ema"):
            assert torch.equal(whole[group][name], rest[group][name])
            assert not torch.equal(whole[group][name], half[group][name])
    states = [run["optimizer_states"][0]["state"] for run in (whole, rest)]
    assert len(states[0]) == len([k for k in whole["state_dict"] if k in whole["ema"]])
    assert all(torch.equal(states[0][i][k], states[1][i][k]) for i in states[0] for k in ("exp_avg", "exp_avg_sq"))
    assert cli("sample", "ckpt=whole/checkpoints/last.ckpt", "n=2", "steps=2", "out=s").code == 0
