"""A discrete chain on a path: its levels, and the reverse steps between them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.time_sampling import Levels, training_levels
from diffcli.diffusion.variance import log_variances

LEVELS = 1000  # of a chain on a continuous schedule, unless it is told


def levels_of(sde: SDE, T: int | None = None) -> Levels:
    """What draws the levels of a chain, each equally often: the SDE's own, or `t_max i/T` on a continuous one.

    Raises ValueError for an SDE without a process, fewer than 2 levels, and a T that is not the number of its own levels.
    """
    require(
        sde.is_process, "a chain walks from noise to data, and levels=one is no way: take loss=dsm, esm, ism or ssm"
    )
    own = None if sde.times is None else len(sde.times)
    require(
        T is None or own in (None, T),
        f"T={T} does not go with a schedule that has {own} levels of its own: leave T out",
    )
    T = T or own or LEVELS
    require(len(training_levels(sde, T)) >= 2, f"T={T} puts fewer than 2 levels between t_min and t_max of the SDE")
    return Levels(T)


@dataclass(frozen=True)
class Chain:
    """The reverse steps of a chain as float64 tables (T,); row i - 1 is the step from x_i to x_{i-1}, x_0 being the data itself.

    t: the level stepped from.  noise: sigma/alpha there.  gain: `e^{2h} - 1`, infinite in the first row.
    log_small: log of the small variance, which is 0 at i = 1: there it is betatilde_2 (Ho et al. 2020).
    gap: `log(large / small)`.
    """

    t: Tensor
    noise: Tensor
    gain: Tensor
    log_small: Tensor
    gap: Tensor

    @classmethod
    def of(cls, sde: SDE, T: int | None = None, device: torch.device | str = "cpu") -> "Chain":
        """Computed anew at each call: an SDE may move between devices, and its t_min be changed."""
        t = training_levels(sde, levels_of(sde, T).T, device)
        lam, log_sigma = sde.lam(t), sde.log_sigma(t)
        h = torch.cat([lam.new_tensor([torch.inf]), lam[:-1] - lam[1:]])
        small, large = log_variances(torch.cat([log_sigma[:1], log_sigma[:-1]]), log_sigma, h)
        small[0] = small[1]
        return cls(t, torch.exp(-lam), torch.expm1(2 * h), small, large - small)
