"""The whole chain learns: a small network trained by DSM approaches the exact score."""

import torch
from cases import build, generator, mixture_2d, normal

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.loss import DSM
from diffcli.diffusion.prediction import Eps
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
