"""A walk on one Gaussian is affine in where it starts and in all its noise: its law at the end, without Monte Carlo."""

import math

import torch
from cases import level
from torch import Tensor

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.samplers import sample


class Basis:
    """Noise for rows: 0; the unit vectors of x; the unit vectors of each draw.  On the first walk it learns their counters."""

    def __init__(self):
        self.draws = []

    def rows(self) -> int:
        return 3 + 2 * len(self.draws)

    def learn(self, counter) -> Tensor:
        self.draws.append(counter)
        return torch.zeros(1, 2, dtype=torch.float64)

    def __call__(self, counter) -> Tensor:
        z, n = torch.zeros(self.rows(), 2, dtype=torch.float64), 3 + 2 * self.draws.index(counter)
        z[n : n + 2] = torch.eye(2, dtype=torch.float64)
        return z


def affine_map(sampler, model, times) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c of `x_end = a x + b + c z`, z the noise of all steps."""
    basis = Basis()
    sample(model, sampler, torch.zeros(1, 2, dtype=torch.float64), times, basis.learn, "stop")
    x = torch.zeros(basis.rows(), 2, dtype=torch.float64)
    x[1:3] = torch.eye(2, dtype=torch.float64)
    b, *rest = sample(model, sampler, x, times, basis, "stop").x
    units = (torch.stack(rest) - b).T
    return units[:, :2], b, units[:, 2:]


def law_errors(sampler, sde, gaussian: GaussianMixture, times) -> tuple[float, float]:
    """Of the mean and of the covariance at the last time, of a walk from the right law at the first."""
    a, b, c = affine_map(sampler, Exact(sde, gaussian), times)
    (mean, cov), (true_mean, true_cov) = (level(gaussian, sde, t) for t in times[[0, -1]])
    return (a @ mean + b - true_mean).norm().item(), (a @ cov @ a.T + c @ c.T - true_cov).norm().item()


def slope(sampler, sde, gaussian: GaussianMixture, grid, steps: int) -> tuple[float, float]:
    """The weak order between so many steps and twice as many, and the error of these."""
    coarse, fine = (sum(law_errors(sampler, sde, gaussian, grid(sde, n))) for n in (steps, 2 * steps))
    return math.log2(coarse / fine), fine
