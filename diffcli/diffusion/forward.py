"""Paths from data to noise, by the exact kernel: the process that the samplers run backwards."""

import torch
from torch import Tensor

from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.sde import SDE


def forward_path(sde: SDE, x0: Tensor, times: Tensor, noise) -> Tensor:
    """x at increasing float64 times (N,), (N, B, *S): one path from each row of x0 (B, *S), its joint law exact at any spacing.

    `x_1 = alpha_1 x0 + sigma_1 z_1`, then `x_t = (alpha_t/alpha_s) x_s + sigma_{t|s} z_t`; `z_i = noise(i)`, (B, *S), normal.
    Raises ValueError unless the times rise.  Kingma et al. 2021, eq. 20-21, arXiv:2107.00630.
    """
    require(bool((times.diff() > 0).all()), "the times of a forward path must rise")
    path = [sde.perturb(x0, times[0], noise(0))]
    for i in range(1, len(times)):
        ratio, std = sde.transition(times[i - 1], times[i])
        path.append(match(ratio, x0) * path[-1] + match(std, x0) * noise(i))
    return torch.stack(path)
