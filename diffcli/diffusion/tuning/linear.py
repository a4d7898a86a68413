"""The weights of any method that is linear in what it reads, by walking it once along symbols."""

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import Sampler
from diffcli.diffusion.samplers.tuned import FORM
from diffcli.diffusion.sde import SDE


class Symbols(Denoiser):
    """A model whose F at its i-th evaluation is the unit vector i + 1, on states that are coefficients (1, 1 + evaluations)."""

    def __init__(self, sde: SDE):
        super().__init__(sde)
        self.asked = 0

    def parts(self, xt, t, **cond):
        self.asked += 1
        require(self.asked < xt.shape[1], "it reads the model more than once a step")
        f = torch.zeros_like(xt)
        f[0, self.asked] = 1.0
        p, q = FORM.reading(self.sde, t)
        return -p / q, 1 / q, f


def weights_of(sampler: Sampler, sde: SDE, times: Tensor) -> Tensor:
    """W (steps, steps + 1) with which `TunedSampler` makes the steps of this sampler, to round-off.

    A state is `c_i0 x_0 + sum_j c_i,j+1 F_j`; the share of x_i in x_{i+1} is what its share of x_0 is of that of x_i.
    Raises ValueError for a sampler that takes more than one evaluation a step, or noise.
    """
    steps = len(times) - 1
    one = sampler.kind == "ode" and sampler.cost(steps) == steps
    require(one, "its weights can be fitted only where a sampler of the ODE takes one evaluation a step")
    start = torch.zeros(1, steps + 1, dtype=torch.float64)
    start[0, 0] = 1.0
    states = [start]
    sampler.walk(Symbols(sde), start, times, None, lambda i, x: states.append(x.clone()))
    c = torch.cat(states)
    a = c[1:, :1] / c[:-1, :1]
    return torch.cat([a, (c[1:] - a * c[:-1])[:, 1:]], dim=1)
