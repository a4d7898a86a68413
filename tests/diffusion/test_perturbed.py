"""The known error of a denoiser: its size, its smoothness, and that it is a function of x and t alone."""

import pytest
import torch
from cases import ALL, build, f64, generator, mixture_2d, mixture_of, paths

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.perturbed import Perturbed
from diffcli.diffusion.prediction import EDM
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP


@paths(ALL)
def test_eps_is_off_by_the_error(sde):
    """In every reading, and of the size asked for: `eps' - eps = error r`, r of mean square 1."""
    truth = Exact(sde, mixture_2d())
    model = Perturbed(truth, 2, error=0.1)
    x0, _ = truth.mixture.sample(4000, generator(0))
    z = torch.randn(x0.shape, dtype=torch.float64, generator=generator(1))
    sizes = []
    for lam in torch.linspace(-3, 4, 8, dtype=torch.float64):
        t = sde.time(lam).clamp(sde.t_min, sde.t_max)
        xt = sde.perturb(x0, t, z)
        r, sigma, alpha = model.field(xt, t), sde.sigma(t), sde.alpha(t)
        torch.testing.assert_close(model.eps(xt, t), truth.eps(xt, t) + 0.1 * r, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(xt, t), truth(xt, t) - sigma / alpha * 0.1 * r, rtol=1e-9, atol=1e-9)
        sizes.append(r.square().mean())
    assert torch.stack(sizes).mean().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("d", [1, 2, 64])
def test_its_mean_square_is_one_over_all_errors(d):
    sde = VP(Linear())
    x = torch.randn(50, d, dtype=torch.float64, generator=generator(2))
    t = f64(0.4)
    square = [Perturbed(Exact(sde, mixture_of(d)), d, seed=s).field(x, t).square().mean() for s in range(200)]
    assert torch.stack(square).mean().item() == pytest.approx(1, abs=0.1)


def test_it_is_a_function_of_x_t_and_the_seed():
    sde = VP(Linear())
    truth = Exact(sde, mixture_2d())
    x, t = (
        torch.randn(6, 2, dtype=torch.float64, generator=generator(3)),
        torch.linspace(0.1, 0.9, 6, dtype=torch.float64),
    )
    model = Perturbed(truth, 2, 0.3)
    whole = model(x, t)
    torch.testing.assert_close(whole, torch.cat([Perturbed(truth, 2, 0.3)(x[i : i + 1], t[i]) for i in range(6)]))
    assert not torch.allclose(whole, Perturbed(truth, 2, 0.3, seed=1)(x, t), atol=1e-3)
    torch.testing.assert_close(Perturbed(truth, 2, 0.0)(x, t), truth(x, t), rtol=0, atol=0)
    step = 1e-4 * torch.randn(x.shape, dtype=torch.float64, generator=generator(4))
    change = (model.field(x + step, t) - model.field(x, t)).norm(dim=1) / step.norm(dim=1)
    assert change.max() < 10  # smooth: it turns on the scale of the state itself
    with pytest.raises(ValueError, match="error must be at least 0, got -1"):
        Perturbed(truth, 2, -1)
    assert model.float().waves.on(torch.device("cpu"))[0].dtype == torch.float64


class Net(torch.nn.Module):
    def forward(self, x, c_noise):
        return torch.tanh(x)


@pytest.mark.parametrize("t", [f64(0.4)[0], f64(0.1, 0.4, 0.9)], ids=["one time", "times"])
def test_a_network_may_be_inside(t):
    """Whose coefficients at one time are numbers."""
    truth = EDM(VP(Linear()), Net())
    model, x = Perturbed(truth, 2, 0.3), torch.randn(3, 2, dtype=torch.float64, generator=generator(6))
    torch.testing.assert_close(model.eps(x, t), truth.eps(x, t) + 0.3 * model.field(x, t))


def test_without_noise_there_is_no_error():
    sde, t = build("path"), f64(0.0)
    assert sde.sigma(t) == 0
    model = Perturbed(Exact(sde, mixture_2d()), 2, error=0.5)
    x = torch.randn(6, 2, dtype=torch.float64, generator=generator(5))
    torch.testing.assert_close(model(x, t), x, rtol=0, atol=0)
