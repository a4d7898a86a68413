"""What the network predicts: each prediction is four coefficients of t, after EDM's preconditioning."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match
from diffcli.diffusion.sde import SDE


class Prediction(Denoiser):
    """`x0_hat = c_skip xt + c_out F(c_in xt, c_noise)`.

    The network maps `(x (B, *S), c_noise (B,), **cond)` to (B, *S).  `c_in = 1 / sqrt(alpha^2 + sigma^2)` gives it inputs
    of unit variance for data of unit variance (it is 1 for VP); `c_noise = 1000 t`.  Karras et al. 2022, eq. 7, arXiv:2206.00364.
    """

    def __init__(self, sde: SDE, network: nn.Module):
        super().__init__(sde)
        self.network = network

    @abstractmethod
    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, by solving the definition of F for x0."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, c_noise, float64, each of the shape of t."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        c_skip, c_out = self.skip_and_out(alpha, sigma)
        return c_skip, c_out, torch.rsqrt(alpha**2 + sigma**2), 1000 * t

    def parts(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        c_skip, c_out, c_in, c_noise = self.coefficients(t)
        weight = next(self.network.parameters(), xt)
        x = (match(c_in, xt) * xt).to(weight.dtype)
        out = self.network(x, c_noise.to(x).expand(xt.shape[0]), **cond)
        return c_skip, c_out, out.to(xt.dtype)


class Eps(Prediction):
    """F = eps: `x0 = (xt - sigma F) / alpha`.  Ho et al. 2020, eq. 9, arXiv:2006.11239."""

    def skip_and_out(self, alpha, sigma):
        return 1 / alpha, -sigma / alpha


class X0(Prediction):
    """F = x0."""

    def skip_and_out(self, alpha, sigma):
        return torch.zeros_like(alpha), torch.ones_like(alpha)


class V(Prediction):
    """F = v = alpha eps - sigma x0: `x0 = (alpha xt - sigma F) / (alpha^2 + sigma^2)`.  Salimans & Ho 2022, arXiv:2202.00512."""

    def skip_and_out(self, alpha, sigma):
        q = alpha**2 + sigma**2
        return alpha / q, -sigma / q


class Score(Prediction):
    """F = grad log p_t: `x0 = (xt + sigma^2 F) / alpha` (Tweedie).  Song & Ermon 2019, arXiv:1907.05600."""

    def skip_and_out(self, alpha, sigma):
        return 1 / alpha, sigma**2 / alpha
