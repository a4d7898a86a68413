"""The Ornstein-Uhlenbeck process."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require, softplus
from diffcli.diffusion.sde.base import SDE


class OU(SDE):
    """`dx = -theta x du + s dw` on u in [0, horizon], u = horizon t: with `theta' = theta horizon` and `c = s^2 / (2 theta)`,
    `alpha = e^{-theta' t}`, `sigma^2 = c (1 - e^{-2 theta' t})`, `f = -theta'`, `g^2 = 2 theta' c`.

    The prior is the stationary N(0, c I).  Raises ValueError unless theta, s and horizon are above 0.
    Uhlenbeck & Ornstein 1930.
    """

    def __init__(self, theta: float = 5.0, s: float = math.sqrt(10), horizon: float = 1.0, t_min: float | None = None):
        super().__init__()
        for name, value in (("theta", theta), ("s", s), ("horizon", horizon)):
            require(value > 0, f"{name} must be above 0, got {value}")
        self.rate = float(theta * horizon)
        self.log_std = math.log(s) - 0.5 * math.log(2 * theta)
        self._set_range(1e-5 if t_min is None else t_min, 1.0)

    @property
    def prior_std(self) -> float:
        return math.exp(self.log_std)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -self.rate * t

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.log_std + 0.5 * torch.log(-torch.expm1(-2 * self.rate * t))

    def time(self, lam: Tensor) -> Tensor:
        # e^{-2 lam} = c (e^{2 theta' t} - 1)
        return softplus(-2 * (lam + self.log_std)) / (2 * self.rate)
