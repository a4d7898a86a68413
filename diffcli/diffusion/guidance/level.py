"""What is known on one SDE, asked at the noise levels of another."""

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.sde import SDE


def level(sde: SDE, other: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Where `other` has the level that `sde` has at t: `u` with `other.lam(u) = sde.lam(t)`, and `alpha_u / alpha_t`.

    x_t times that ratio is x_u.  A level beyond the other's range is taken for the nearest one in it.
    """
    u = other.time(sde.lam(t)).clamp(other.t_min, other.t_max)
    return u, torch.exp(other.log_alpha(u) - sde.log_alpha(t))


def parts_at(sde: SDE, inner: Denoiser, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
    """The `parts` on `sde` of a denoiser on another: `x0_hat(x_t, t) = inner((alpha_u / alpha_t) x_t, u)`."""
    u, ratio = level(sde, inner.sde, t)
    c_skip, c_out, out = inner.evaluate(match(ratio, xt) * xt, u, **cond)
    return c_skip * ratio, c_out, out


def reach(sde: SDE, other: SDE) -> float:
    """The t up to which `other` has levels as noisy as those of `sde`; infinite where it has them all."""
    ends = [a.lam(torch.tensor(a.t_max, dtype=torch.float64)) for a in (sde, other)]
    return torch.inf if ends[1] <= ends[0] + 1e-6 else sde.time(ends[1]).item()


class AtLevel(Denoiser):
    """A denoiser asked at the levels of another SDE, as `Rescaled`, whose time range stays as it is.

    A level beyond its own range is asked at the nearest one in it.  Raises ValueError for a free field, for a model of one
    level, and for an SDE whose one level has no noise.
    """

    def __init__(self, sde: SDE, inner: Denoiser):
        super().__init__(sde)
        require(inner.posterior_mean, "the model that guides is a free field (cnf, source), made for its own SDE alone")
        clean = sde.sigma(torch.tensor(sde.t_min, dtype=torch.float64)).item() == 0
        require(not clean, "a model without noise (level.sigma=0) has no x0_hat that another's could be compared with")
        require(inner.sde.is_process, "the model that guides is of one noise level (levels=one), and knows no other")
        self.inner = inner

    def parts(self, xt, t, **cond):
        return parts_at(self.sde, self.inner, xt, t, **cond)
