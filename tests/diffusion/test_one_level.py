"""One noise level: every time is the same one, and there is nowhere to go."""

import pytest
import torch
from cases import PREDICTIONS, Fixed, f64, normal

from diffcli.diffusion.loss import DSM
from diffcli.diffusion.prediction import Score
from diffcli.diffusion.sde import OneLevel
from diffcli.diffusion.time_sampling import Uniform
from diffcli.randomness import Draw


def test_coefficients_are_the_level_at_every_time():
    sde = OneLevel(0.8, 0.3)
    t = f64(0.0, 0.4, 1.0)
    assert not sde.is_process
    assert torch.allclose(sde.alpha(t), f64(0.8, 0.8, 0.8)) and torch.allclose(sde.sigma(t), f64(0.3, 0.3, 0.3))
    assert torch.equal(sde.f(t), torch.zeros(3).double()) and torch.equal(sde.g2(t), torch.zeros(3).double())
    x0, eps = normal(0, 3, 2), normal(1, 3, 2)
    assert torch.allclose(sde.perturb(x0, t, eps), 0.8 * x0 + 0.3 * eps)


def test_without_noise_it_is_the_data():
    x0 = normal(0, 3, 2)
    sde = OneLevel(1.0, 0.0)
    assert torch.equal(sde.perturb(x0, f64(0.0)[0], normal(1, 3, 2)), x0)
    assert sde.sigma(f64(0.5)).item() == 0


def test_the_network_is_always_told_the_same():
    """c_noise is 0 for all items and steps: no input that means nothing."""
    sde = OneLevel(1.0, 0.3)
    network = Fixed(torch.zeros(8, 2))
    for step in range(3):
        DSM()(Score(sde, network), torch.zeros(8, 2), Draw(0, step))
    assert len(network.calls) == 3
    assert all(torch.equal(c_noise, torch.zeros(8)) for _, c_noise in network.calls)
    t, weight = Uniform()(sde, 5, Draw(0, 0))
    assert torch.equal(t, torch.zeros(5).double()) and torch.equal(weight, torch.ones(5).double())


@pytest.mark.parametrize("name", PREDICTIONS)
def test_readings_agree_at_a_level_with_noise(name):
    """`xt = alpha x0 + sigma eps` and `score = -eps / sigma`, whatever is predicted; a velocity is refused."""
    sde, out, xt, t = OneLevel(0.9, 0.4), normal(2, 6, 2), normal(3, 6, 2), f64(0.0)[0]
    if name == "velocity":
        with pytest.raises(ValueError, match="one noise level has none"):
            PREDICTIONS[name](sde, Fixed(out))
        return
    model = PREDICTIONS[name](sde, Fixed(out))
    x0, eps = model.x0_and_eps(xt, t)
    assert torch.allclose(0.9 * x0 + 0.4 * eps, xt)
    assert torch.allclose(model.score(xt, t), -eps / 0.4)


@pytest.mark.parametrize(("alpha", "sigma", "words"), [(0.0, 0.1, "alpha must be above 0"), (1.0, -0.1, "at least 0")])
def test_refusals(alpha, sigma, words):
    with pytest.raises(ValueError, match=words):
        OneLevel(alpha, sigma)
