"""A known denoiser with a known error: what a trained network is like, where the truth is still at hand."""

import math

import torch

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import Constants, match, require

WAVES = 32  # cosines that the error is made of
LAM = 20.0  # where sigma or alpha is zero lam is infinite


class Perturbed(Denoiser):
    """The denoiser inside with `eps + error r(x, t)`: r is smooth, fixed by `seed`, and of mean square 1 a coordinate.

    `r(x, t) = sqrt(2/K) sum_k a_k cos(w_k . u + nu_k lam + b_k)`, `u = x / sqrt(alpha^2 + sigma^2)`, over K = 32 waves with
    a_k ~ N(0, I) (d,), rows set to mean square 1, w_k ~ N(0, (4/d) I), nu_k ~ N(0, 1/4), b_k uniform on a circle.  So error is
    relative: that of eps, whose own mean square is 1.  x0_hat is off by `-(sigma/alpha) error r`, the score by
    `-error r / sigma`.  d: dimension of an item.  Raises ValueError unless error >= 0.
    """

    def __init__(self, inner: Denoiser, d: int, error: float = 0.1, seed: int = 0):
        require(error >= 0, f"error must be at least 0, got {error}")
        super().__init__(inner.sde)
        self.inner, self.error = inner, float(error)
        self.posterior_mean, self.double_backward = inner.posterior_mean, inner.double_backward
        g = torch.Generator().manual_seed(seed)
        a, w = (torch.randn(WAVES, d, dtype=torch.float64, generator=g) for _ in range(2))
        nu, b = (
            torch.randn(WAVES, dtype=torch.float64, generator=g),
            torch.rand(WAVES, dtype=torch.float64, generator=g),
        )
        self.waves = Constants(a / a.square().mean(0).sqrt(), 2 * w / math.sqrt(d), 0.5 * nu, 2 * math.pi * b)

    @property
    def mixture(self):
        """The true law, of the exact denoiser inside."""
        return self.inner.mixture

    def field(self, xt, t):
        """r(xt, t) (B, *S) float64."""
        a, w, nu, b = self.waves.on(xt.device)
        u = xt.double() / match(torch.hypot(self.sde.alpha(t), self.sde.sigma(t)), xt.double())
        lam = match(self.sde.lam(t).clamp(-LAM, LAM), w.new_empty(len(xt), 1))
        return (torch.cos(u.flatten(1) @ w.T + lam * nu + b) @ a * math.sqrt(2 / WAVES)).view_as(xt)

    def parts(self, xt, t, **cond):
        c_skip, c_out, out = self.inner.evaluate(xt, t, **cond)
        off = self.error * self.sde.sigma(t) / self.sde.alpha(t)
        ratio = torch.where(off == 0, 0.0, off / c_out)  # without noise x0_hat is x, and knows no error
        r = self.field(xt, t)
        return c_skip, c_out, out - (match(ratio, r) * r).to(out.dtype)
