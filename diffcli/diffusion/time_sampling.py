"""At which times a loss is evaluated: (sde, n, draw) -> t (n,) and its importance weight 1/q (n,)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffcli.diffusion.sde import SDE


class TimeSampler(ABC):
    """Draws n times on [sde.t_min, sde.t_max] with density q, and returns them with 1/q relative to the uniform density."""

    @abstractmethod
    def __call__(self, sde: SDE, n: int, draw) -> tuple[Tensor, Tensor]: ...


class Uniform(TimeSampler):
    """t uniform, stratified over the batch: `u_i = (u + i/n) mod 1`, one u a batch, which lowers the variance of the loss.

    Kingma et al. 2021, app. I.1, arXiv:2107.00630.
    """

    def __call__(self, sde, n, draw):
        u = draw.uniform("t", (1,), torch.float64)
        u = (u + torch.arange(n, dtype=torch.float64, device=u.device) / n) % 1
        return sde.t_min + (sde.t_max - sde.t_min) * u, torch.ones_like(u)


TIME_SAMPLERS = {"uniform": Uniform}
