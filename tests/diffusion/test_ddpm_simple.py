"""DDPM's simple loss: its value, its levels, and denoising score matching on them."""

import pytest
import torch
from cases import Recorder, Shifted, build, f64, mixture_2d, normal

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.loss import DSM, DDPMSimple, TrainingSet
from diffcli.diffusion.schedule import DDPM, NCSN
from diffcli.diffusion.sde import VE, VP, OneLevel
from diffcli.randomness import Draw

CHAINS = {"ddpm": VP(DDPM(T=50)), "ncsn": VE(NCSN(L=50)), "vp": build("vp", "linear"), "flow": build("flow", "logit")}
every_chain = pytest.mark.parametrize("sde", [pytest.param(sde, id=name) for name, sde in CHAINS.items()])


def loss_for(sde):
    return DDPMSimple(None if sde.times is not None else 50)


@every_chain
def test_value_at_one_draw(sde):
    """||eps_theta - eps||^2, without the half."""
    recorder, x0 = Recorder(Shifted(sde, mixture_2d(), 0.3)), normal(0, 80, 2)
    losses = loss_for(sde)(recorder, x0, Draw(0, 0))
    ((xt, t),) = recorder.calls
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    x0_hat = recorder.inner(xt, t)  # eps_theta - eps = alpha (x0 - x0_hat) / sigma
    assert losses.shape == (80,)
    assert torch.allclose(losses, (alpha * (x0 - x0_hat) / sigma).square().sum(1), rtol=1e-6)


@every_chain
def test_every_level_is_drawn_equally_often(sde):
    recorder = Recorder(Exact(sde, mixture_2d()))
    for step in range(3):
        loss_for(sde)(recorder, normal(0, 100, 2), Draw(0, step))
    levels = sde.t_max * torch.arange(1, 51).double() / 50 if sde.times is None else sde.times
    for _, t in recorder.calls:
        found, count = t.unique(return_counts=True)
        assert torch.allclose(found, levels, rtol=1e-12) and (count == 2).all()
    assert not torch.equal(recorder.calls[0][1], recorder.calls[1][1])


@pytest.mark.parametrize("name", ["ddpm", "vp"])
def test_it_is_twice_dsm_on_the_levels(name):
    """The same draw, level by level and item by item."""
    sde, x0 = CHAINS[name], normal(0, 60, 2)
    model = Shifted(sde, mixture_2d(), 0.3)
    simple = loss_for(sde)(model, x0, Draw(0, 4))
    assert torch.allclose(simple, 2 * DSM("simple", time="levels", T=50)(model, x0, Draw(0, 4)), rtol=1e-12)
    assert not torch.allclose(simple, 2 * DSM("simple")(model, x0, Draw(0, 4)))


def test_levels_of_a_continuous_schedule():
    """1000 of them unless it is told, and the SDE stays as it is."""
    sde = build("vp", "linear")
    recorder = Recorder(Exact(sde, mixture_2d()))
    DDPMSimple()(recorder, normal(0, 2000, 2), Draw(0, 0))
    assert torch.allclose(recorder.calls[0][1].unique(), torch.arange(1, 1001).double() / 1000)
    assert sde.times is None and sde.t_min == 1e-5
    late = build("vp", "linear", t_min=0.5)
    recorder = Recorder(Exact(late, mixture_2d()))
    DDPMSimple(10)(recorder, normal(0, 60, 2), Draw(0, 0))
    assert torch.allclose(recorder.calls[0][1].unique(), f64(0.5, 0.6, 0.7, 0.8, 0.9, 1.0))


def test_float32_in_float32_out():
    losses = DDPMSimple()(Exact(build("vp", "linear"), mixture_2d()), normal(0, 30, 2).float(), Draw(0, 0))
    assert losses.dtype == torch.float32 and torch.isfinite(losses).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="T must be at least 2"):
        DDPMSimple(1)
    data = TrainingSet(lambda: None, (2,))
    for loss, sde, words in [(DDPMSimple(), OneLevel(), "levels=one"), (DDPMSimple(20), CHAINS["ddpm"], "50 levels")]:
        with pytest.raises(ValueError, match=words):
            loss.setup(Exact(sde, mixture_2d()), data)
    DDPMSimple().setup(Exact(CHAINS["ddpm"], mixture_2d()), data)
