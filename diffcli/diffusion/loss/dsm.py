"""Denoising score matching."""

from typing import Literal

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss
from diffcli.diffusion.numeric import require
from diffcli.diffusion.time_sampling import TIME_SAMPLERS
from diffcli.diffusion.weighting import WEIGHTS


class DSM(Loss):
    """`1/2 w(t) ||s_theta(x_t, t) + eps/sigma||^2`, computed as `1/2 (w/sigma^2) ||eps_theta - eps||^2`.

    weight: simple (w = sigma^2), likelihood (g^2), uniform (1).  time: how t is drawn.
    Raises ValueError for another name.  Vincent 2011; Song et al. 2021, eq. 7, arXiv:2011.13456.
    """

    def __init__(
        self, weight: Literal["simple", "likelihood", "uniform"] = "simple", time: Literal["uniform"] = "uniform"
    ):
        super().__init__()
        require(weight in WEIGHTS, f"weight must be one of {', '.join(WEIGHTS)}, got {weight}")
        require(time in TIME_SAMPLERS, f"time must be one of {', '.join(TIME_SAMPLERS)}, got {time}")
        self.weight = WEIGHTS[weight]
        self.time = TIME_SAMPLERS[time]()

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        t, importance = self.time(denoiser.sde, x0.shape[0], draw)
        eps = draw.normal("eps", x0.shape, x0.dtype)
        xt = denoiser.sde.perturb(x0, t, eps)
        error = (denoiser.eps(xt, t, **cond) - eps).flatten(1).square().sum(1)
        w = importance * self.weight(denoiser.sde, t) / denoiser.sde.sigma(t) ** 2
        return 0.5 * w.to(error.dtype) * error
