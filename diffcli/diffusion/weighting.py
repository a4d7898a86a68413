"""Weights of the score-matching bracket `1/2 w(t) ||s_theta + eps/sigma||^2`, by their names on the command line.

Each is written as its factor `w/sigma^2` on the same bracket in noise units, `1/2 ||eps_theta - eps||^2`, where nothing
overflows.  A weight W that a paper puts on `1/2 ||x0_hat - x0||^2` is `w = W sigma^4/alpha^2`, the factor `W e^{-2 lam}`.
"""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE


class Weight(nn.Module):
    """(sde, t (B,), bracket (B,), d) -> (B,): `bracket = 1/2 ||eps_theta - eps||^2`, summed over d dimensions, weighted."""

    @abstractmethod
    def factor(self, sde: SDE, t: Tensor) -> Tensor:
        """`w(t)/sigma^2` in t's dtype (float64)."""

    def forward(self, sde: SDE, t: Tensor, bracket: Tensor, d: int) -> Tensor:
        return self.factor(sde, t).to(bracket) * bracket

    def setup(self, sde: SDE, data) -> None:
        """Take what it needs of the data (a TrainingSet).  Raises ValueError for an SDE on which it is nothing."""


class Simple(Weight):
    """`w = sigma^2`, that is `1/2 ||eps_theta - eps||^2`.  Ho et al. 2020, eq. 14, arXiv:2006.11239."""

    def factor(self, sde, t):
        return torch.ones_like(t)


class Likelihood(Weight):
    """`w = g^2`: the loss bounds the KL of the reverse-SDE model.  Song et al. 2021b, thm. 1, arXiv:2101.09258."""

    def factor(self, sde, t):
        return -2 * sde.dlam(t)  # g^2 = -2 sigma^2 dlam/dt

    def setup(self, sde, data):
        require(sde.is_process, "weight=likelihood is 0 where there is no process (g = 0): weight=simple")


class Uniform(Weight):
    """`w = 1`: plain denoising score matching.  Vincent 2011."""

    def factor(self, sde, t):
        return torch.exp(-2 * sde.log_sigma(t))


class SNR(Weight):
    """`W = e^{2 lam}` on x0: the same as `simple`, as x0 and noise errors differ by alpha/sigma.  Salimans & Ho 2022, eq. 9,
    arXiv:2202.00512.
    """

    def factor(self, sde, t):
        return torch.ones_like(t)


class MinSNR(Weight):
    """`W = min(e^{2 lam}, gamma)` on x0.  Raises ValueError unless gamma > 0.  Hang et al. 2023, eq. 8, arXiv:2303.09556."""

    def __init__(self, gamma: float = 5.0):
        super().__init__()
        require(gamma > 0, f"gamma must be above 0, got {gamma}")
        self.gamma = float(gamma)

    def factor(self, sde, t):
        return torch.exp((math.log(self.gamma) - 2 * sde.lam(t)).clamp(max=0))


class EDM(Weight):
    """`W = (r^2 + sd^2)/(r sd)^2` on x0, `r = sigma/alpha` and sd = sigma_data: `||F_theta - F||^2` in EDM's units.

    sigma_data=auto is measured in `setup`.  Raises ValueError unless it is above 0.  Karras et al. 2022, table 1,
    arXiv:2206.00364.
    """

    def __init__(self, sigma_data: float | Literal["auto"] = "auto"):
        super().__init__()
        self.sigma_data = known_sigma_data(sigma_data)

    def factor(self, sde, t):
        return 1 + torch.exp(-2 * (sde.lam(t) + math.log(self.sigma_data)))  # W r^2 = 1 + (r/sd)^2

    def setup(self, sde, data):
        self.sigma_data = known_sigma_data(self.sigma_data, data)


class V(Weight):
    """`W = (alpha^2 + sigma^2)^2/sigma^2` on x0, that is `1/2 ||v_theta - v||^2`; on VP it is snr + 1.  Salimans & Ho 2022,
    app. D, arXiv:2202.00512.
    """

    def factor(self, sde, t):
        log_alpha, log_sigma = sde.log_alpha(t), sde.log_sigma(t)
        return torch.exp(2 * torch.logaddexp(2 * log_alpha, 2 * log_sigma) - 2 * log_alpha)


class Learned(Weight):
    """Uncertainty weighting: `bracket e^{-u(lam)} + d u(lam)`, u a learned linear function of Fourier features of lam/4.

    At its optimum e^u is the mean bracket of a dimension at that level, and the denoiser's gradient is the simple one
    divided by it: every level counts the same.  The features are fixed; u starts at 0, where the weight is `simple`.
    Karras et al. 2024, eq. 21 and app. B, arXiv:2312.02696; Kendall et al. 2018, arXiv:1705.07115.
    """

    def __init__(self, features: int = 64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", torch.randn(features, generator=generator), persistent=False)
        self.register_buffer("phases", torch.rand(features, generator=generator), persistent=False)
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(()))

    def u(self, sde: SDE, t: Tensor) -> Tensor:
        """log of the mean bracket of a dimension, in the parameters' dtype."""
        angle = 2 * math.pi * (sde.lam(t)[:, None] / 4 * self.frequencies + self.phases)
        return (math.sqrt(2) * angle.cos()).to(self.weight) @ self.weight + self.bias

    def factor(self, sde, t):
        return torch.exp(-self.u(sde, t))

    def forward(self, sde, t, bracket, d):
        u = self.u(sde, t)
        return torch.exp(-u) * bracket + d * u


def known_sigma_data(sigma_data: float | Literal["auto"], data=None) -> float | Literal["auto"]:
    """sigma_data checked; auto is measured where a TrainingSet is given, as the standard deviation over all dimensions."""
    if sigma_data == "auto":
        if data is None:
            return sigma_data
        x = data.items()
        require(bool((x != x.flatten()[0]).any()), "the data do not vary, so sigma_data=auto has nothing to measure")
        sigma_data = x.double().std(correction=0).item()
    require(sigma_data > 0, f"sigma_data must be above 0, got {sigma_data}")
    return float(sigma_data)


def weights(gamma: float = 5.0, sigma_data: float | Literal["auto"] = "auto") -> dict[str, Weight]:
    """Every weight by its name on the command line, with these settings.  Raises ValueError for one out of range."""
    return {
        "simple": Simple(), "likelihood": Likelihood(), "uniform": Uniform(), "min_snr": MinSNR(gamma),
        "edm": EDM(sigma_data), "v": V(), "snr": SNR(), "learned": Learned(),
    }  # fmt: skip
