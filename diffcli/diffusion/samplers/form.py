"""Exact rewritings of the probability-flow ODE, `dy/drho = g` with `y = x / scale` and g a reading of the model.

A solver is written once and works in each: the linear part of the ODE is in `scale`, solved exactly.
Lu et al. 2022, prop. 3.1, arXiv:2206.00927; Karras et al. 2022, eq. 1-4, arXiv:2206.00364;
Zhang & Chen 2023, prop. 3, arXiv:2204.13902.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.phi import gauss_legendre, phi
from diffcli.diffusion.sde import SDE


class Form(ABC):
    """The scale of x, the variable rho, and the reading `g = p x + q x0_hat`; all map float64 times to their shape."""

    @abstractmethod
    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """The factor between x and y."""

    @abstractmethod
    def rho(self, sde: SDE, t: Tensor) -> Tensor:
        """The variable of integration."""

    @abstractmethod
    def time(self, sde: SDE, rho: Tensor) -> Tensor:
        """The inverse of `rho`."""

    @abstractmethod
    def reading(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q."""


class LamForm(Form):
    """A form whose rho is a function of lam, so that polynomials in lam can be integrated: `∫ u^m drho`, u = (l - a)/h."""

    @abstractmethod
    def of_lam(self, lam: Tensor) -> Tensor:
        """rho."""

    @abstractmethod
    def to_lam(self, rho: Tensor) -> Tensor:
        """lam."""

    @abstractmethod
    def slope(self, lam: float) -> float:
        """drho/dlam."""

    @abstractmethod
    def moments(self, a: float, b: float, count: int) -> list[float]:
        """`∫_a^b ((l - a)/(b - a))^m (drho/dl) dl` for m = 0 ... count - 1."""

    def rho(self, sde, t):
        return self.of_lam(sde.lam(t))

    def time(self, sde, rho):
        return sde.time(self.to_lam(rho))


class EpsForm(LamForm):
    """`d(x/alpha) = eps d(sigma/alpha)`: noise prediction, EDM's sigma."""

    def scale(self, sde, t):
        return sde.alpha(t)

    def of_lam(self, lam):
        return torch.exp(-lam)

    def to_lam(self, rho):
        return -torch.log(rho)

    def reading(self, sde, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return 1 / sigma, -alpha / sigma

    def slope(self, lam):
        return -math.exp(-lam)

    def moments(self, a, b, count):
        h = b - a
        return [-h * math.exp(-b) * math.factorial(m) * phi(m + 1, h) for m in range(count)]


class X0Form(LamForm):
    """`d(x/sigma) = x0_hat d(alpha/sigma)`: data prediction, DPM-Solver++'s."""

    def scale(self, sde, t):
        return sde.sigma(t)

    def of_lam(self, lam):
        return torch.exp(lam)

    def to_lam(self, rho):
        return torch.log(rho)

    def reading(self, sde, t):
        return torch.zeros_like(t), torch.ones_like(t)

    def slope(self, lam):
        return math.exp(lam)

    def moments(self, a, b, count):
        h = b - a
        return [h * math.exp(b) * math.factorial(m) * phi(m + 1, -h) for m in range(count)]


class VForm(LamForm):
    """`d(x/r) = -F dphi`, `r^2 = alpha^2 c^2 + sigma^2`, `phi = arctan(sigma/(alpha c))`, for data of standard deviation c.

    F is EDM's network output, of unit variance at every level; c = 1 under VP makes it v.  Exact, with F constant, for
    Gaussian data N(0, c^2 I).  Raises ValueError unless c > 0.
    Salimans & Ho 2022, app. D, arXiv:2202.00512; Karras et al. 2022, eq. 7.
    """

    def __init__(self, c: float = 1.0):
        require(c > 0, f"sigma_data must be above 0, got {c}")
        self.c = float(c)

    def scale(self, sde, t):
        return torch.sqrt((self.c * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2)

    def of_lam(self, lam):
        return torch.atan(torch.exp(-lam) / self.c)

    def to_lam(self, rho):
        return -torch.log(self.c * torch.tan(rho))

    def reading(self, sde, t):
        r, sigma = self.scale(sde, t), sde.sigma(t)
        return self.c * sde.alpha(t) / (sigma * r), -r / (self.c * sigma)

    def slope(self, lam):
        return -0.5 / math.cosh(lam + math.log(self.c))

    def moments(self, a, b, count):
        u, w = gauss_legendre(b - a)
        density = -0.5 / torch.cosh(a + (b - a) * u + math.log(self.c)) * (b - a) * w
        return [(density * u**m).sum().item() for m in range(count)]


class TForm(Form):
    """`dx/dt`, the PF-ODE as it stands."""

    def scale(self, sde, t):
        return torch.ones_like(t)

    def rho(self, sde, t):
        return t

    def time(self, sde, rho):
        return rho

    def reading(self, sde, t):
        return sde.dlog_sigma(t), sde.alpha(t) * sde.dlam(t)


class LForm(Form):
    """`dx/dlam`."""

    def scale(self, sde, t):
        return torch.ones_like(t)

    def rho(self, sde, t):
        return sde.lam(t)

    def time(self, sde, rho):
        return sde.time(rho)

    def reading(self, sde, t):
        return sde.dlog_sigma(t) / sde.dlam(t), sde.alpha(t)
