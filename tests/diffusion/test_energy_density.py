"""-E of an energy model: its own score's path integral, normalised where a grid can, and refused for other models."""

import math

import pytest
import torch
from cases import build, every_path, f64, mixture_2d, normal
from torch import nn

from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.likelihood.energy import EnergyDensity
from diffcli.diffusion.likelihood.path_integral import PathIntegral
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.sde import OneLevel
from diffcli.networks.mlp import MLP


class Bowl(nn.Module):
    """F with which E is that of N(mean, C) noised to the one level there is: `<u, F(u)> = c_in sigma E`."""

    def __init__(self, sde, gaussian: GaussianMixture):
        super().__init__()
        alpha, sigma = sde.level
        self.c_in = 1 / math.hypot(alpha, sigma)
        self.scale = self.c_in * (sigma or alpha)
        d = gaussian.means.shape[1]
        cov = alpha**2 * gaussian.covs[0] + sigma**2 * torch.eye(d, dtype=torch.float64)
        self.mean, self.precision = alpha * gaussian.means[0], torch.linalg.inv(cov)

    def forward(self, u, c_noise):
        x = u / self.c_in - self.mean
        e = 0.5 * ((x @ self.precision) * x).sum(1, keepdim=True)
        return u * self.scale * e / u.square().sum(1, keepdim=True)


def mlp(d: int = 2) -> MLP:
    torch.manual_seed(0)
    network = MLP([d], width=16, blocks=1)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network.double()


def found(likelihood, model, x, data):
    likelihood.setup(model, TrainingSet(lambda: data, tuple(data.shape[1:])))
    return likelihood(model, x, None)


def gaussian(d: int) -> GaussianMixture:
    a = normal(3, d, d)
    return GaussianMixture(f64(1.0), normal(4, 1, d), (a @ a.T / d * 0.3 + 0.05 * torch.eye(d).double())[None])


@pytest.mark.parametrize(
    "sde", [OneLevel(1.0, 0.2), OneLevel(0.7, 0.5), OneLevel(2.0, 0.0)], ids=["a", "b", "no noise"]
)
@pytest.mark.parametrize("d", [1, 2])
def test_normalised_it_is_the_density(sde, d):
    """Of the data with the noise of the level, of an energy that is known up to its constant."""
    truth = gaussian(d)
    x = truth.sample(300, torch.Generator().manual_seed(0))[0]
    likelihood = EnergyDensity()
    got = found(likelihood, Energy(sde, Bowl(sde, truth)), x[:30], x)
    alpha, sigma = sde.level
    assert likelihood.normalised and likelihood.findings()["grid_points"] == {1: 4097, 2: 257**2}[d]
    assert torch.allclose(got.log_prob, truth.log_prob(x[:30], 1.0, sigma / alpha), rtol=0, atol=1e-6)
    assert got.solver_err.max() < 1e-6


def test_in_more_dimensions_it_is_minus_the_energy():
    sde, truth = OneLevel(1.0, 0.2), gaussian(16)
    x = truth.sample(30, torch.Generator().manual_seed(0))[0]
    likelihood = EnergyDensity()
    model = Energy(sde, Bowl(sde, truth))
    got, exact = found(likelihood, model, x, x), truth.log_prob(x, 1.0, 0.2)
    assert not likelihood.normalised and likelihood.findings() == {}
    assert torch.allclose(got.log_prob - got.log_prob[0], exact - exact[0], rtol=0, atol=1e-9)
    assert torch.equal(got.log_prob, -model.energy(x, f64(0.0)[0]))


@pytest.mark.parametrize("t", [None, 0.2])
@every_path
def test_it_is_the_path_integral_of_its_score(sde, t):
    """To the quadrature, whatever the weights: no path dependence, and differences of -E."""
    model, x = Energy(sde, mlp()), normal(0, 12, 2)
    path = found(PathIntegral(t=t, grid=0, reference=[0.3, -0.2], tol=1e-8), model, x, x)
    energy = found(EnergyDensity(t=t, grid=0), model, torch.cat([x, f64([0.3, -0.2])]), x).log_prob
    size = energy.abs().max()  # of 1/sigma
    assert torch.allclose(path.log_prob, energy[:-1] - energy[-1], rtol=0, atol=1e-6 * size)
    assert path.path_gap.max() < 1e-6 * size


def test_evaluations():
    """One an item, beside those of the grid, which are counted once for all."""
    sde, x = build("vp", "linear"), normal(0, 12, 2)
    model, likelihood = Energy(sde, mlp()), EnergyDensity(grid=16, t=0.5)
    assert found(likelihood, model, x, x).nfe.tolist() == [1] * 12
    assert model.rows == 17**2 + 12
    likelihood(model, x, None)
    assert model.rows == 17**2 + 24


@pytest.mark.parametrize("model", [Exact, Eps, Rescaled])
def test_a_model_without_an_energy_is_refused(model):
    sde = build("vp", "linear")
    inner = {Exact: mixture_2d(), Eps: mlp(), Rescaled: Energy(build("vp", "cosine"), mlp())}[model]
    with pytest.raises(ValueError, match="prediction=energy.*likelihood=path"):
        found(EnergyDensity(), model(sde, inner), torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize(("settings", "words"), [(dict(grid=5), "must be even"), (dict(t=1.5), "t must lie in")])
def test_refusals(settings, words):
    with pytest.raises(ValueError, match=words):
        found(EnergyDensity(**settings), Energy(build("vp", "linear"), mlp()), torch.zeros(2, 2), torch.zeros(2, 2))
