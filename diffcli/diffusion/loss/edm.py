"""EDM's loss."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.time_sampling import LogNormal
from diffcli.diffusion.weighting import known_sigma_data


class EDM(Loss):
    """`w ||D(x_t, t) - x0||^2`, `w = (r^2 + sd^2)/(r sd)^2`, r = sigma/alpha, sd = sigma_data, log r ~ N(p_mean, p_std^2).

    There is no factor 1/2, as in the paper.  On any path it is computed as `||F_theta - F||^2` with EDM's F of unit
    variance, `F = (x0 - c_skip x_t)/c_out = (sigma x0/sd - alpha sd eps)/sqrt(q)`, `q = sigma^2 + alpha^2 sd^2`, since
    `w = 1/c_out^2`: nothing cancels at either end, and prediction=edm is compared as it is.
    sigma_data=auto is measured in `setup`.  Raises ValueError for a value out of range, and in `setup` for a single noise
    level.  Karras et al. 2022, eq. 8 and table 1, arXiv:2206.00364.
    """

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float | Literal["auto"] = "auto"):
        super().__init__()
        self.time = LogNormal(p_mean, p_std)
        self.sigma_data = known_sigma_data(sigma_data)

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require(denoiser.sde.is_process, "loss=edm draws from the noise levels of a process: loss=dsm loss.weight=edm")
        self.time.setup(denoiser.sde)
        self.sigma_data = known_sigma_data(self.sigma_data, data)

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        sde, sd = denoiser.sde, self.sigma_data
        t, _ = self.time(sde, x0.shape[0], draw)
        eps = draw.normal("eps", x0.shape, x0.dtype)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        root = torch.sqrt(sigma**2 + alpha**2 * sd**2)
        target = match(sigma / (sd * root), x0) * x0 - match(alpha * sd / root, x0) * eps
        # F as a reading: -c_skip/c_out x_t + 1/c_out x0_hat
        reading = (-alpha * sd / (sigma * root), root / (sigma * sd))
        (found,) = denoiser.read(sde.perturb(x0, t, eps), t, [reading], **cond)
        return (found - target).flatten(1).square().sum(1)
