"""DPM-Solver with adaptive steps."""

import torch
from torch import Tensor

from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.ode import MAX_NFE, Pair
from diffcli.diffusion.samplers.adaptive import AdaptiveODE
from diffcli.diffusion.sde import SDE

FIRST = 0.05  # the first step in lam


class DPMPair(Pair):
    """DPM-Solver-1 within -2 (order 2), or -2 within -3 (order 3), on `fn((x,), lam) -> (eps,)`.

    The step is the higher one's, with r1 = 1/2, or r1 = 1/3 and r2 = 2/3; the lower one reads nothing of its own.
    Lu et al. 2022, alg. 3 and app. C, arXiv:2206.00927.
    """

    def __init__(self, fn, sde: SDE, order: int):
        self.fn, self.sde, self.order = fn, sde, order
        self.calls, self.power = order - 1, 1 / order

    def read(self, y, tau):
        return self.fn(y, tau)

    def start(self, y, first, tol, scales, span):
        return torch.full_like(
            y[0].flatten(1)[:, 0], min(FIRST, abs(span)) * (1 if span > 0 else -1), dtype=torch.float64
        )

    def level(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at lam (B,)."""
        t = self.sde.time(lam)
        return self.sde.alpha(t), self.sde.sigma(t)

    def attempt(self, y, first, tau, h, k):
        (x,), (e,) = y, first
        alpha_t, _ = self.level(tau)

        def solution(lam, *terms):  # (alpha_l/alpha_t) x - sigma_l sum c D
            alpha, sigma = self.level(lam)
            return match(alpha / alpha_t, x) * x - sum(match(sigma * c, x) * d for c, d in terms)

        def difference(r, u):
            return self.fn((u,), tau + r * h)[0] - e

        def slope(z):  # z phi_2(z)
            return torch.where(z == 0, 0.0, torch.expm1(z) / z - 1)

        if self.order == 2:
            d1 = difference(1 / 2, solution(tau + h / 2, (torch.expm1(h / 2), e)))
            low, high = [(torch.expm1(h), e)], [(torch.expm1(h), e), (torch.expm1(h), d1)]
        else:
            r1, r2 = 1 / 3, 2 / 3
            d1 = difference(r1, solution(tau + r1 * h, (torch.expm1(r1 * h), e)))
            v = solution(tau + r2 * h, (torch.expm1(r2 * h), e), (r2 / r1 * slope(r2 * h), d1))
            low = [(torch.expm1(h), e), (torch.expm1(h) / (2 * r1), d1)]
            high = [(torch.expm1(h), e), (slope(h) / r2, difference(r2, v))]
        new = solution(tau + h, *high)
        return (new,), (new - solution(tau + h, *low),), None


class DPMAdaptive(AdaptiveODE):
    """The DPM-Solver pair 12 (order=2) or 23 (order=3) with a step size an item, to the local error `tol` (absolute and relative).

    It chooses its own steps; the grid gives the first and last time, and the times at which a callback looks, where the path
    within a step is a parabola of x/alpha in sigma/alpha.  Its error weighs absolute and relative as rk45's does:
    `tol (1 + max(|x_t|, |x_s|))`, where the paper takes the larger of the two.
    An item may take max_nfe evaluations of the denoiser.  Raises ValueError for another order, unless 0 < tol < 1 and max_nfe >= 1.
    Lu et al. 2022, app. C, arXiv:2206.00927.
    """

    def __init__(self, order: int = 3, tol: float = 0.01, max_nfe: int = MAX_NFE):
        require(order in (2, 3), f"order must be 2 (the pair 12) or 3 (the pair 23), got {order}")
        super().__init__(tol, max_nfe)
        self.order = order

    def field(self, denoiser):
        return lambda y, lam: (denoiser.eps(y[0], denoiser.sde.time(lam)),)

    def pair(self, denoiser, fn):
        return DPMPair(fn, denoiser.sde, self.order)

    def path(self, denoiser, at, tau, end, x, new, first, last):
        sde = denoiser.sde
        (alpha_t, alpha_l, alpha_s) = (sde.alpha(sde.time(lam)) for lam in (tau, at, end))
        rho_t, rho_l, rho_s = (torch.exp(-lam) for lam in (tau, at, end))
        # y = x/alpha: y_t and its slope eps, and y_s
        u = (rho_l - rho_t) / (rho_s - rho_t)
        a, b, c = alpha_l / alpha_t * (1 - u**2), alpha_l * (rho_l - rho_t) * (1 - u), alpha_l / alpha_s * u**2
        return match(a, x) * x + match(b, x) * first[0] + match(c, x) * new
