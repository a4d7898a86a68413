"""The whole chain learns: small networks trained by each loss approach the exact score."""

import pytest
import torch
from cases import build, f64, generator, mixture_2d, normal

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.loss import DSM, ESM, ISM, SSM, SSMVR, TrainingSet
from diffcli.diffusion.prediction import Eps, Score
from diffcli.diffusion.sde import OneLevel
from diffcli.networks.mlp import MLP
from diffcli.randomness import Draw


def relative_error(model, truth, n=20_000):
    """sqrt(E[sigma^2 ||s_theta - s||^2] / E[sigma^2 ||s||^2]), t uniform: in noise units, sigma s = -eps."""
    x0, _ = truth.mixture.sample(n, generator(99))
    t = torch.linspace(truth.sde.t_min, truth.sde.t_max, n, dtype=torch.float64)
    xt = truth.sde.perturb(x0, t, normal(98, n, 2))
    with torch.no_grad():
        exact = truth.eps(xt, t)
        wrong = model.eps(xt.float(), t).double() - exact
    return (wrong.square().sum() / exact.square().sum()).sqrt().item()


@pytest.mark.heavy
def test_dsm_learns_the_score_of_a_mixture():
    torch.manual_seed(0)
    steps, batch = 1500, 512
    truth = Exact(build("vp", "linear"), mixture_2d())
    model = Eps(truth.sde, MLP([2], width=64, blocks=2))
    untrained = relative_error(model, truth)
    data, _ = truth.mixture.sample(100_000, generator(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    loss = DSM("simple")
    for step in range(steps):
        x0 = data[(step * batch) % 99_000 :][:batch].float()
        optimizer.zero_grad()
        loss(model, x0, Draw(0, step)).mean().backward()
        optimizer.step()
        decay.step()
    assert untrained > 0.9
    trained = relative_error(model, truth)
    assert trained < 0.10, trained


LOSSES = {
    "esm": lambda: ESM("known"),
    "esm-kde": lambda: ESM("kde", 0.1),
    "ism": ISM,
    "ssm": SSM,
    "ssm_vr": SSMVR,
    "dsm": lambda: DSM("simple"),
}


QUICK = ("dsm",)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.heavy) for n in LOSSES])
def test_each_loss_learns_the_score_of_a_mixture_at_one_level(name):
    """The same network, items and number of steps: sqrt(E[sigma^2 ||s_theta - s||^2] / E[sigma^2 ||s||^2]) below 10 %."""
    torch.manual_seed(0)
    steps, batch, sde, truth, loss = 600, 2048, OneLevel(1.0, 0.5), mixture_2d(), LOSSES[name]()
    model = Score(sde, MLP([2], width=32, blocks=1))
    data = truth.sample(steps * batch, generator(0))[0]
    loss.setup(model, TrainingSet(lambda: data[:500], (2,), None, truth))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    t = f64(0.0)[0]
    x = sde.perturb(truth.sample(10_000, generator(1))[0], t, normal(2, 10_000, 2))
    exact = truth.score(x, 1.0, 0.5)

    def error():
        with torch.no_grad():
            return ((model.score(x.float(), t).double() - exact).square().sum() / exact.square().sum()).sqrt().item()

    untrained = error()
    for step, x0 in enumerate(data.float().split(batch)):
        optimizer.zero_grad()
        loss(model, x0, Draw(0, step)).mean().backward()
        optimizer.step()
        decay.step()
    assert untrained > 0.9
    assert error() < 0.10, error()
