"""Denoising score matching."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.time_sampling import time_samplers
from diffcli.diffusion.weighting import weights


class DSM(Loss):
    """`1/2 w(t) ||s_theta(x_t, t) + eps/sigma||^2`, computed as `1/2 (w/sigma^2) ||eps_theta - eps||^2`.

    weight: simple (w = sigma^2), likelihood (g^2), uniform (1); in x0 units snr, min_snr (with gamma), edm (with
    sigma_data) and v; learned.  time: uniform; levels (T of them where the SDE has none); lognormal (p_mean, p_std of
    log(sigma/alpha), which becomes part of the weighting); importance (uniform in lam, corrected).
    Raises ValueError for another name or a value out of range.  Vincent 2011; Song et al. 2021, eq. 7, arXiv:2011.13456.
    """

    def __init__(
        self,
        weight: Literal["simple", "likelihood", "uniform", "min_snr", "edm", "v", "snr", "learned"] = "simple",
        time: Literal["uniform", "levels", "lognormal", "importance"] = "uniform",
        T: int = 1000,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        gamma: float = 5.0,
        sigma_data: float | Literal["auto"] = "auto",
    ):
        super().__init__()
        every_weight, every_time = weights(gamma, sigma_data), time_samplers(T, p_mean, p_std)
        require(weight in every_weight, f"weight must be one of {', '.join(every_weight)}, got {weight}")
        require(time in every_time, f"time must be one of {', '.join(every_time)}, got {time}")
        self.weight, self.time = every_weight[weight], every_time[time]

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        check_noise(denoiser.sde)
        self.time.setup(denoiser.sde)
        self.weight.setup(denoiser.sde, data)

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        t, importance = self.time(denoiser.sde, x0.shape[0], draw)
        eps = draw.normal("eps", x0.shape, x0.dtype)
        xt = denoiser.sde.perturb(x0, t, eps)
        bracket = 0.5 * (denoiser.eps(xt, t, **cond) - eps).flatten(1).square().sum(1)
        return importance.to(bracket) * self.weight(denoiser.sde, t, bracket, x0[0].numel())


def check_noise(sde: SDE) -> None:
    """Raise ValueError where there is no noise to match."""
    t_min = sde.log_sigma(torch.tensor(sde.t_min, dtype=torch.float64))
    require(
        bool(torch.isfinite(t_min)),
        "level.sigma=0 has no noise to learn from: level.sigma above 0, or loss=esm|ism|ssm",
    )
