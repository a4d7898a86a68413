"""Schedules in closed form: alpha(t) or sigma(t) of the papers as l(t)."""

import math
from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require, softplus
from diffcli.diffusion.schedule.base import Schedule


class Cosine(Schedule):
    """`alpha(t) = cos(a) / cos(b)`, `a = pi/2 (t + s)/(1 + s)`, `b = pi/2 s/(1 + s)`, not clipped: alpha(1) = 0.

    Raises ValueError unless 0 < s < 1.  Nichol & Dhariwal 2021, eq. 17, arXiv:2102.09672.
    """

    t_min = 1e-5
    t_max = 0.9946  # alpha = 0.0084; the end that DPM-Solver takes (Lu et al. 2022, arXiv:2206.00927)

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


class Sigmoid(Schedule):
    """`alpha^2 = (v(1) - v(t)) / (v(1) - v(0))`, `v(t) = sigmoid((start + t (end - start)) / tau)`: alpha(1) = 0.

    t_max is where alpha = 0.0084, as for the cosine.  Raises ValueError unless start < end and tau > 0.
    Jabri et al. 2022, app. B, arXiv:2212.11972; Chen 2023, arXiv:2301.10972.
    """

    t_min = 1e-5

    def __init__(self, start: float = -3.0, end: float = 3.0, tau: float = 1.0):
        super().__init__()
        require(tau > 0, f"tau must be above 0, got {tau}")
        require(start < end, f"end must be above start = {start}, got {end}")
        # sigmoid(p) - sigmoid(q) = sinh((p - q)/2) / (2 cosh(p/2) cosh(q/2)) with (p - q)/2 = t w or (1 - t) w
        self.w = (end - start) / (2 * tau)
        self.shift = _log_cosh(start / (2 * tau)) - _log_cosh(end / (2 * tau))
        # beyond, alpha and sigma leave float64's exponents
        require(self.w < 300, f"end - start must be below 600 tau, got {end - start} with tau = {tau}")
        self.t_max = self.inverse(torch.tensor(math.log(0.0084), dtype=torch.float64)).item()

    def forward(self, t: Tensor) -> Tensor:
        return 0.5 * (_log_sinh(self.w * (1 - t)) - _log_sinh(self.w * t) + self.shift)

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        # r = sinh(w t) / sinh(w (1 - t)) gives e^{2 w t} - 1 = 2 r sinh(w) / (1 + r e^-w); q = log(r)
        q = self.shift - 2 * l
        twice_sinh = self.w + math.log(-math.expm1(-2 * self.w))
        return softplus(q + twice_sinh - softplus(q - self.w)) / (2 * self.w)


def _log_sinh(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


def check_sigmas(sigma_min: float, sigma_max: float | Literal["auto"]) -> tuple[float, float]:
    require(sigma_max != "auto", "sigma_max=auto needs data to measure it on: give a number")
    require(sigma_min > 0, f"sigma_min must be above 0, got {sigma_min}")
    require(sigma_max > sigma_min, f"sigma_max must be above sigma_min = {sigma_min}, got {sigma_max}")
    return float(sigma_min), float(sigma_max)


class Geometric(Schedule):
    """VE with sigma geometric: `l = -log(sigma_min) - t log(sigma_max / sigma_min)`.

    sigma_max=auto is measured on the training items (the largest distance between two) before the model is built.
    Raises ValueError unless 0 < sigma_min < sigma_max.  Song et al. 2021, eq. 30, arXiv:2011.13456.
    """

    def __init__(self, sigma_min: float = 0.001, sigma_max: float | Literal["auto"] = 50.0):
        super().__init__()
        self.sigma_min, self.sigma_max = check_sigmas(sigma_min, sigma_max)
        self.range = math.log(self.sigma_max) - math.log(self.sigma_min)

    def forward(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_min) - self.range * t

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        return (-math.log(self.sigma_min) - l) / self.range


class EDM(Schedule):
    """VE with sigma linear, EDM's sigma = t on [sigma_min, sigma_max]: `l = -log(sigma_min + t (sigma_max - sigma_min))`.

    sigma_max=auto is measured on the training items (the largest distance between two) before the model is built.
    Raises ValueError unless 0 < sigma_min < sigma_max.  Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    t_stop = 0.0  # at t = 1e-3 sigma is still 0.08

    def __init__(self, sigma_min: float = 0.002, sigma_max: float | Literal["auto"] = 80.0):
        super().__init__()
        self.sigma_min, self.sigma_max = check_sigmas(sigma_min, sigma_max)
        self.ratio = (self.sigma_max - self.sigma_min) / self.sigma_min

    def forward(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_min) - torch.log1p(self.ratio * t)

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        return torch.expm1(-math.log(self.sigma_min) - l) / self.ratio


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
