"""The variational bound in continuous time, on any path."""

import torch

from diffcli.diffusion.bound.base import Part, Strata, VariationalBound
from diffcli.diffusion.bound.decoder import centres, decoder
from diffcli.diffusion.numeric import match, require


class ContinuousBound(VariationalBound):
    """`-log p(x_0) <= KL(q(x_1|x_0) || prior) + int E||eps - eps_theta||^2 dlam + E[-log p(x_0 | x)]`, x at t_min.

    The integral runs over lam from t_max to t_min, in times/2 strata of equal length with two noises each.  The last
    term is the Gaussian N(x0_hat, (sigma/alpha)^2 I) at t_min.  Without levels it is a density: what it lacks of the
    true posterior of x_0 is of order sigma^4, and with an exact score and prior the bound is then `-log p(x_0)` item by
    item, at t = 0 itself; a dequantised item is bounded like any other value.  With levels an item is the centre of its
    own, and the Gaussian is integrated over its bin: a bound of the level's probability, close only for a model that
    was trained on centres.  A model of dequantised items knows no centres: below the width of a level it would be
    charged for every noise that q still tells apart.

    Raises ValueError for times=all, and in setup for a path without noise at t_min.
    Kingma et al. 2021, sec. 4, arXiv:2107.00630; Song et al. 2021, thm. 3, arXiv:2101.09258.
    """

    per = "unit of lam"

    def setup(self, denoiser, prior=None, levels=None):
        require(self.times != "all", "a continuous bound has no last level: times=64, or the discrete bound")
        super().setup(denoiser, prior, levels)
        sde = denoiser.sde
        self.low, self.high = sde.lam(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).tolist()
        self.count = self.times // 2

    def strata(self, sde):
        lam = torch.linspace(self.high, self.low, self.count + 1, dtype=torch.float64)
        t = sde.time(lam)
        t[0], t[-1] = sde.t_min, sde.t_max  # free of the round-off of time(lam(t))
        return Strata(t[:-1], t[1:], -lam.diff())

    def _begin(self, denoiser, x0):
        return centres(x0, self.levels), self.count, 2

    def _part(self, denoiser, x0, j, u, eps, cond):
        width = (self.high - self.low) / self.count
        sde = denoiser.sde
        t = sde.time(self.high - (j + u) * width).clamp(sde.t_min, sde.t_max)
        error = self._error(denoiser, x0, t, eps, cond)
        square = error.double().flatten(1).square().sum(1)
        return Part(width * square, torch.full_like(square, width), error, eps)

    def _reconstruction(self, denoiser, x0, eps, cond):
        t = torch.full((len(x0),), denoiser.sde.t_min, dtype=torch.float64, device=x0.device)
        lam = denoiser.sde.lam(t)
        error = self._error(denoiser, x0, t, eps, cond).double()
        miss, log_std = match(torch.exp(-lam), error) * error, match(-lam, error)
        value = decoder(x0, miss, log_std, self.levels).flatten(1).sum(1)
        return Part(value, None if self.levels else torch.full_like(value, 0.5), error, eps)

    @staticmethod
    def _error(denoiser, x0, t, eps, cond):
        return denoiser.eps(denoiser.sde.perturb(x0, t, eps), t, **cond) - eps
