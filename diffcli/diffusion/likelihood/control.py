"""What is known of a divergence beforehand, taken out of its random estimate."""

import torch
from torch import Tensor

from diffcli.diffusion.numeric import match
from diffcli.diffusion.sde import SDE


class Control:
    """A control variate of Hutchinson's estimate: the denoiser of Gaussian data of covariance C (d, d).

    Its reading `p x + q x0_hat` has the Jacobian `A = p I + q alpha C (alpha^2 C + sigma^2 I)^-1`, whose trace is known, so that
    `e^T J e + tr A - e^T A e` has the mean of `e^T J e`, and the variance of J - A: none for Gaussian data.  Where A is no
    likeness of J, as of digits between the noise levels, it adds its own.
    Hutchinson 1990; Lavenberg & Welch 1981 (control variates).
    """

    def __init__(self, cov: Tensor):
        variances, self.axes = torch.linalg.eigh(cov.double())
        self.variances = variances.clamp(min=0)

    def __call__(self, sde: SDE, probes: Tensor, t: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """`tr A - e^T A e` of the probes (B, K, *S) at t, p, q, () or (B,): (B, K), float64."""
        axes, c = self.axes.to(probes.device), self.variances.to(probes.device)
        alpha, sigma, q = (match(a.double(), c[None]) for a in (sde.alpha(t), sde.sigma(t), q))
        eigenvalues = q * alpha * c / (alpha**2 * c + sigma**2)
        eigenvalues = match(p.double(), c[None]) + eigenvalues.expand(len(probes), -1)
        return (eigenvalues[:, None] * (1 - (probes.double().flatten(2) @ axes).square())).sum(2)
