"""Schedules given by VP's beta(t), through its integral `B(t) = int_0^t beta`: `l = -log(e^B - 1) / 2`."""

from abc import abstractmethod

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require, softplus
from diffcli.diffusion.schedule.base import Schedule


def level_of(b: Tensor) -> Tensor:
    """`l = -log(e^B - 1) / 2`, VP's half log-SNR where `alpha^2 = e^-B`."""
    # log(e^b - 1) = b + log(1 - e^-b): no overflow for large b, no cancellation for small b
    return -0.5 * (b + torch.log(-torch.expm1(-b)))


class FromBeta(Schedule):
    """A schedule that writes B(t) and its inverse; there is no noise at t = 0, so t_min = 1e-5."""

    t_min = 1e-5

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """`B(t) = int_0^t beta`."""

    @abstractmethod
    def integral_inverse(self, b: Tensor) -> Tensor:
        """The time at which the integral is b."""

    def forward(self, t: Tensor) -> Tensor:
        return level_of(self.integral(t))

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        return self.integral_inverse(softplus(-2 * l))


def check_betas(beta_min: float, beta_max: float) -> tuple[float, float]:
    require(beta_min > 0, f"beta_min must be above 0, got {beta_min}")
    require(beta_max >= beta_min, f"beta_max must be at least beta_min = {beta_min}, got {beta_max}")
    return float(beta_min), float(beta_max)


class Constant(FromBeta):
    """VP with beta constant: `B(t) = beta t`; an Ornstein-Uhlenbeck process with theta = beta/2 and s^2 = beta.

    Raises ValueError unless beta > 0.
    """

    def __init__(self, beta: float = 10.0):
        super().__init__()
        require(beta > 0, f"beta must be above 0, got {beta}")
        self.beta = float(beta)

    def integral(self, t: Tensor) -> Tensor:
        return self.beta * t

    def integral_inverse(self, b: Tensor) -> Tensor:
        return b / self.beta


class Linear(FromBeta):
    """VP with beta(t) linear: `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`.

    Raises ValueError unless 0 < beta_min <= beta_max.  Song et al. 2021, eq. 32-33, arXiv:2011.13456.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        self.beta_min, self.beta_max = check_betas(beta_min, beta_max)

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def integral_inverse(self, b: Tensor) -> Tensor:
        # the root of the quadratic in the form that does not cancel for small b
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))


class Quadratic(FromBeta):
    """VP with sqrt(beta(t)) = p + q t linear from sqrt(beta_min) to sqrt(beta_max): `B(t) = p^2 t + p q t^2 + q^2 t^3 / 3`.

    Stable Diffusion's "scaled linear" in continuous time.  Raises ValueError unless 0 < beta_min <= beta_max.
    Rombach et al. 2022, arXiv:2112.10752 (their code).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        self.beta_min, self.beta_max = check_betas(beta_min, beta_max)
        self.p, self.q = self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.p**2 + t * (self.p * self.q + t * self.q**2 / 3))

    def integral_inverse(self, b: Tensor) -> Tensor:
        # y = p + q t has y^3 = p^3 + 3 q B, and y^3 - p^3 = q t (y^2 + y p + p^2): nothing cancels, q may be 0
        y = (self.p**3 + 3 * self.q * b) ** (1 / 3)
        return 3 * b / (y**2 + y * self.p + self.p**2)
