"""A denoiser under another SDE."""

import torch

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.level import parts_at
from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE


class Rescaled(Denoiser):
    """A denoiser under another SDE: at equal lam the two states are proportional, so x0_hat is the same.

    `x0_hat(x, t) = inner((alpha_u / alpha_t) x, u)` with `inner.sde.lam(u) = sde.lam(t)`; the inner denoiser keeps its own t
    and c_noise.  The new SDE's time range is cut to the levels that the inner one was made for.
    Raises ValueError if there are none, and for a model whose x0_hat is no posterior mean.
    Karras et al. 2022, app. B.2 and C.3.1, arXiv:2206.00364.
    """

    def __init__(self, sde: SDE, inner: Denoiser):
        super().__init__(sde)
        require(inner.posterior_mean, "the model is a free field (cnf, source), made for its own SDE alone")
        self.inner = inner
        ends = inner.sde.lam(torch.tensor([inner.sde.t_min, inner.sde.t_max], dtype=torch.float64))
        t_min, t_max = sde.time(ends).tolist()
        sde.t_min, sde.t_max = max(sde.t_min, t_min), min(sde.t_max, t_max)
        require(sde.t_min < sde.t_max, "the two SDEs have no noise level in common")

    def parts(self, xt, t, **cond):
        return parts_at(self.sde, self.inner, xt, t, **cond)
