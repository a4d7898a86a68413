"""What the network predicts: each prediction is four coefficients of t, after EDM's preconditioning."""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match, require, spread
from diffcli.diffusion.sde import SDE


class Prediction(Denoiser):
    """`x0_hat = c_skip xt + c_out F(c_in xt, c_noise)`.

    The network maps `(x (B, *S), c_noise (B,), **cond)` to `outputs` tensors (B, *S) along the first event dimension, of which
    F is the first and `moments` reads the second.  `c_in = 1 / sqrt(alpha^2 + sigma^2)` gives it inputs of unit variance for
    data of unit variance (it is 1 for VP); `c_noise = 1000 t`.  Raises ValueError unless outputs is 1 or 2.
    Karras et al. 2022, eq. 7, arXiv:2206.00364.
    """

    def __init__(self, sde: SDE, network: nn.Module, outputs: int = 1):
        super().__init__(sde)
        require(outputs in (1, 2), f"outputs must be 1, or 2 for a learned variance, got {outputs}")
        self.network, self.outputs = network, outputs

    @abstractmethod
    def skip_and_out(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, by solving the definition of F for x0."""

    def c_in(self, t: Tensor) -> Tensor:
        return torch.rsqrt(self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)

    def c_noise(self, t: Tensor) -> Tensor:
        return 1000 * t

    def parts(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        c_skip, c_out, c_in, c_noise = self.kept("all", self._coefficients, t)
        return c_skip, c_out, self._call(xt, c_in, c_noise, **cond)[0]

    def _variance_parts(self, xt, t, **cond):
        c_skip, c_out, c_in, c_noise = self.kept("all", self._coefficients, t)
        out, second = self._call(xt, c_in, c_noise, **cond)
        return c_skip, c_out, out, torch.sigmoid(second)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, ...]:
        return *self.skip_and_out(t), *self._inputs(t)

    def _inputs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.c_in(t), self.c_noise(t)

    def _call(self, xt: Tensor, c_in: Tensor | float, c_noise: Tensor | float, **cond) -> tuple[Tensor, ...]:
        """The network's outputs, each of xt's shape and dtype."""
        weight = next(self.network.parameters(), xt)
        x = (match(c_in, xt) * xt).to(weight.dtype)
        out = self.network(x, spread(c_noise, x), **cond)
        out = out.to(xt.dtype)
        if self.outputs == 1:
            return (out,)
        require(  # half of one output would broadcast in silence
            out.shape[1] == self.outputs * xt.shape[1],
            f"prediction.outputs={self.outputs} needs a network with as many, its output has shape {tuple(out.shape)}",
        )
        return out.chunk(self.outputs, dim=1)


class Eps(Prediction):
    """F = eps: `x0 = (xt - sigma F) / alpha`.  Ho et al. 2020, eq. 9, arXiv:2006.11239."""

    def skip_and_out(self, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return 1 / alpha, -sigma / alpha


class X0(Prediction):
    """F = x0."""

    def skip_and_out(self, t):
        return torch.zeros_like(t), torch.ones_like(t)


class V(Prediction):
    """F = v = alpha eps - sigma x0: `x0 = (alpha xt - sigma F) / (alpha^2 + sigma^2)`.  Salimans & Ho 2022, arXiv:2202.00512."""

    def skip_and_out(self, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        q = alpha**2 + sigma**2
        return alpha / q, -sigma / q


class Score(Prediction):
    """F = grad log p_t: `x0 = (xt + sigma^2 F) / alpha` (Tweedie).  Song & Ermon 2019, arXiv:1907.05600."""

    def skip_and_out(self, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return 1 / alpha, sigma**2 / alpha

    def score(self, xt, t, **cond):
        return self.evaluate(xt, t, **cond)[2]  # itself, which holds without noise too


class Velocity(Prediction):
    """F = u = alpha' x0 + sigma' eps, the PF-ODE's right-hand side: `x0 = (sigma' xt - sigma F) / (alpha sigma' - alpha' sigma)`.

    free: the field of any ODE between data and prior (a continuous normalizing flow), or the items of a source; its other
    readings are then only other forms of the same ODE, and x0_hat is no posterior mean.
    Raises ValueError for a single noise level.
    Lipman et al. 2023, eq. 10, arXiv:2210.02747; Albergo & Vanden-Eijnden 2023, arXiv:2209.15571.
    """

    def __init__(self, sde: SDE, network: nn.Module, free: bool = False, outputs: int = 1):
        super().__init__(sde, network, outputs)
        require(sde.is_process, "a velocity is that of a process, and one noise level has none: prediction=score")
        self.posterior_mean = not free

    def c_in(self, t):
        return super().c_in(t) if self.posterior_mean else torch.ones_like(t)

    def c_noise(self, t):
        # a free field is solved again at each training step: slow in t, where 1000 t turns embeddings in a thousandth of it
        return super().c_noise(t) if self.posterior_mean else 10 * t

    def velocity(self, xt, t, **cond):
        self.count(xt)
        # F itself, free of the coefficients' cost and round-off
        return self._call(xt, *self.kept("inputs", self._inputs, t), **cond)[0]

    def skip_and_out(self, t):
        # alpha sigma' - alpha' sigma = -alpha sigma lam'
        slope = self.sde.alpha(t) * self.sde.dlam(t)
        return -self.sde.dlog_sigma(t) / slope, 1 / slope


class EDM(Prediction):
    """F of unit variance for data of standard deviation `sigma_data`, on any path: with `q = sigma^2 + alpha^2 sigma_data^2`,
    `c_skip = alpha sigma_data^2 / q`, `c_out = sigma sigma_data / sqrt(q)`, `c_in = 1 / sqrt(q)`, `c_noise = -lam / 4`.

    sigma_data=auto is measured on the training items before the model is built.  Raises ValueError unless it is above 0.
    Karras et al. 2022, table 1, arXiv:2206.00364.
    """

    def __init__(self, sde: SDE, network: nn.Module, sigma_data: float | Literal["auto"] = 0.5, outputs: int = 1):
        super().__init__(sde, network, outputs)
        require(sigma_data != "auto", "sigma_data=auto needs data to measure it on: give a number")
        require(sigma_data > 0, f"sigma_data must be above 0, got {sigma_data}")
        self.sigma_data = float(sigma_data)

    def _q(self, t: Tensor) -> Tensor:
        return self.sde.sigma(t) ** 2 + (self.sde.alpha(t) * self.sigma_data) ** 2

    def skip_and_out(self, t):
        alpha, sigma, q = self.sde.alpha(t), self.sde.sigma(t), self._q(t)
        return alpha * self.sigma_data**2 / q, sigma * self.sigma_data / torch.sqrt(q)

    def c_in(self, t):
        return torch.rsqrt(self._q(t))

    def c_noise(self, t):
        return -self.sde.lam(t) / 4
