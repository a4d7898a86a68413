"""Schedules in closed form: beta(t), alpha(t) or sigma(t) of the papers as l(t)."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require, softplus
from diffcli.diffusion.schedule.base import Schedule


class Linear(Schedule):
    """VP with beta(t) linear: `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`, `l = -log(e^B - 1) / 2`.

    Raises ValueError unless 0 < beta_min <= beta_max.  Song et al. 2021, eq. 32-33, arXiv:2011.13456.
    """

    t_min = 1e-5

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        require(beta_min > 0, f"beta_min must be above 0, got {beta_min}")
        require(beta_max >= beta_min, f"beta_max must be at least beta_min = {beta_min}, got {beta_max}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def forward(self, t: Tensor) -> Tensor:
        b = t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)
        # log(e^b - 1) = b + log(1 - e^-b): no overflow for large b, no cancellation for small b
        return -0.5 * (b + torch.log(-torch.expm1(-b)))

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        b = softplus(-2 * l)
        # the root of the quadratic in the form that does not cancel for small b
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))


class Cosine(Schedule):
    """`alpha(t) = cos(a) / cos(b)`, `a = pi/2 (t + s)/(1 + s)`, `b = pi/2 s/(1 + s)`, not clipped: alpha(1) = 0.

    Raises ValueError unless 0 < s < 1.  Nichol & Dhariwal 2021, eq. 17, arXiv:2102.09672.
    """

    t_min = 1e-5
    t_max = 0.9946  # where their beta reaches its cap of 0.999 at T = 1000

    def __init__(self, s: float = 0.008):
        super().__init__()
        require(0 < s < 1, f"s must lie between 0 and 1, got {s}")
        self.s = float(s)
        self.rate = math.pi / 2 / (1 + self.s)
        self.b = self.rate * self.s

    def forward(self, t: Tensor) -> Tensor:
        c = self.rate * t
        a = c + self.b
        # cos(b)^2 - cos(a)^2 = sin(a - b) sin(a + b): no cancellation at small t
        return torch.log(torch.cos(a)) - 0.5 * (torch.log(torch.sin(c)) + torch.log(torch.sin(a + self.b)))

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        u = torch.exp(-2 * l) / math.cos(self.b) ** 2  # tan(a)^2 - tan(b)^2
        tan_b = math.tan(self.b)
        tan_a = torch.sqrt(u + tan_b**2)
        return torch.atan(u / (tan_a + tan_b) / (1 + tan_a * tan_b)) / self.rate


class Geometric(Schedule):
    """VE with sigma geometric: `l = -log(sigma_min) - t log(sigma_max / sigma_min)`.

    Raises ValueError unless 0 < sigma_min < sigma_max.  Song et al. 2021, eq. 30, arXiv:2011.13456.
    """

    def __init__(self, sigma_min: float = 0.001, sigma_max: float = 50.0):
        super().__init__()
        require(sigma_min > 0, f"sigma_min must be above 0, got {sigma_min}")
        require(sigma_max > sigma_min, f"sigma_max must be above sigma_min = {sigma_min}, got {sigma_max}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.range = math.log(sigma_max) - math.log(sigma_min)

    def forward(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_min) - self.range * t

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        return (-math.log(self.sigma_min) - l) / self.range


class Logit(Schedule):
    """`l = log((1 - t)/t)`: flow's usual one, on which `alpha = 1 - t` and `sigma = t`; t_max = 0.999, as alpha(1) = 0.

    Lipman et al. 2023, eq. 20, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """

    t_min = 1e-5
    t_max = 0.999

    def forward(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - torch.log(t)

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        return torch.sigmoid(-l)
