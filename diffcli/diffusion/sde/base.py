"""What every SDE with Gaussian paths is: alpha and sigma; everything else is derived once, here."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from diffcli.diffusion.numeric import derivative, match, require


class SDE(nn.Module):
    """`dx = f(t) x dt + g(t) dw` with the path `p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`, t = 0 data, t = 1 noise.

    A new SDE writes `log_alpha`, `log_sigma` and `time`; one whose path follows from a schedule is a `Scheduled`.
    Times are float64 tensors of any shape; coefficients have their shape.  Training and likelihood live on [t_min, t_max].
    Sampling stops at t_stop unless a grid says otherwise.
    `times` holds the training levels of a discrete chain, increasing, else None.

    Raises ValueError unless 0 <= t_min < t_max and lam is finite at t_min.
    Song et al. 2021, sec. 3, arXiv:2011.13456; Kingma et al. 2021, arXiv:2107.00630 (in terms of alpha, sigma).
    """

    t_stop: float = 1e-3
    times: Tensor | None = None
    is_process: bool = True  # whether there is a way from data to noise

    def _set_range(self, t_min: float, t_max: float) -> None:
        """The last statement of a constructor: the times on which the path is used, checked."""
        require(0 <= t_min < t_max, f"t_min must lie in [0, {t_max}), got {t_min}")
        self.t_min, self.t_max = float(t_min), float(t_max)
        lam = self.lam(torch.tensor(self.t_min, dtype=torch.float64)).item()
        require(math.isfinite(lam), f"t_min = {self.t_min} has no noise at all, take 1e-5 or more")

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log of the factor on the data."""

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """log of the standard deviation of the noise."""

    @abstractmethod
    def time(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_sigma(t))

    def lam(self, t: Tensor) -> Tensor:
        """Half the log-SNR, `lam = log(alpha / sigma)`, strictly decreasing."""
        return self.log_alpha(t) - self.log_sigma(t)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient, `f = d log(alpha) / dt`."""
        return derivative(self.log_alpha, t)

    def g2(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient, `g^2 = d(sigma^2)/dt - 2 f sigma^2 = 2 sigma^2 (dlog(sigma)/dt - f)`."""
        return 2 * self.sigma(t) ** 2 * (self.dlog_sigma(t) - self.f(t))

    def dlog_sigma(self, t: Tensor) -> Tensor:
        """d log(sigma) / dt."""
        return derivative(self.log_sigma, t)

    def dlam(self, t: Tensor) -> Tensor:
        """d lam / dt, negative."""
        return self.f(t) - self.dlog_sigma(t)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """`x_t = alpha_t x0 + sigma_t eps` for x0 (B, *S), t () or (B,)."""
        return match(self.alpha(t), x0) * x0 + match(self.sigma(t), x0) * eps

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """For s < t the ratio and standard deviation of `x_t = ratio x_s + std z`.

        `ratio = alpha_t / alpha_s`, `std^2 = sigma_t^2 (1 - e^{-2 (lam_s - lam_t)})`.  Kingma et al. 2021, eq. 20-21.
        """
        ratio = torch.exp(self.log_alpha(t) - self.log_alpha(s))
        std = self.sigma(t) * torch.sqrt(-torch.expm1(-2 * (self.lam(s) - self.lam(t))))
        return ratio, std

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I) at t_max: the noise's own, unless a path says otherwise."""
        return self.sigma(torch.tensor(self.t_max, dtype=torch.float64)).item()

    def sample_prior(self, noise: Tensor) -> Tensor:
        """x at t_max from standard normal noise (B, *S)."""
        return self.prior_std * noise

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, prior_std^2 I) in nats, (B,), summed in float64."""
        z = x.double().flatten(1) / self.prior_std
        return -0.5 * (z**2).sum(1) - z.shape[1] * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))
