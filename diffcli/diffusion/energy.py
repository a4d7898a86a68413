"""A scalar energy whose gradient is the score."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match, spread
from diffcli.diffusion.sde import SDE


class Energy(Denoiser):
    """`score = -grad_x E(x, t)` by automatic differentiation, with `E = <u, F(u, c_noise)> / (c_in sigma)`, `u = c_in x`.

    Then `sigma grad E = F + (dF/du)^T u`: eps of unit scale, and 0 where the network's output is.  At sigma = 0 (one level
    without noise) alpha stands in its place, and the score is the only reading.  E is log p up to the sign and a function
    of t.  The network maps `(u (B, *S), c_noise (B,), **cond)` to (B, *S), `c_in = 1 / sqrt(alpha^2 + sigma^2)`,
    `c_noise = 1000 t`.
    Salimans & Ho 2021, "Should EBMs model the energy or the score?"; Du et al. 2023, sec. 3, arXiv:2302.11552.
    """

    double_backward = True

    def __init__(self, sde: SDE, network: nn.Module):
        super().__init__(sde)
        self.network = network

    def energy(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """E (B,) of xt (B, *S): `log p_t(x) - log p_t(y) = E(y) - E(x)`."""
        self.count(xt)
        c_in = torch.rsqrt(self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)
        return match(self._scale(t) / c_in, xt).flatten() * self._product(match(c_in, xt) * xt, t, **cond)

    def parts(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        """F is the score itself: `x0 = (xt + sigma^2 F) / alpha` (Tweedie)."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        wanted = xt.requires_grad or t.requires_grad or any(p.requires_grad for p in self.network.parameters())
        outside = torch.is_grad_enabled() and wanted  # a frozen model makes no graph, as any other
        with torch.enable_grad():
            u = match(torch.rsqrt(alpha**2 + sigma**2), xt) * xt
            u = u if outside and u.requires_grad else u.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._product(u, t, **cond).sum(), u, create_graph=outside)
        return 1 / alpha, sigma**2 / alpha, -match(self._scale(t), xt) * gradient.to(xt.dtype)

    def score(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        return self.evaluate(xt, t, **cond)[2]  # F itself, which holds without noise too

    def _scale(self, t: Tensor) -> Tensor:
        """1 / sigma, and 1 / alpha where sigma = 0."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return 1 / torch.where(sigma > 0, sigma, alpha)

    def _product(self, u: Tensor, t: Tensor, **cond) -> Tensor:
        """<u, F(u, c_noise)> (B,)."""
        weight = next(self.network.parameters(), u)
        # the fused attention kernels cannot be differentiated twice
        with sdpa_kernel(SDPBackend.MATH):
            x = u.to(weight.dtype)
            out = self.network(x, spread(1000 * t, x), **cond)
        return (u * out.to(u.dtype)).flatten(1).sum(1)
