"""The terms of a chain's bound, for the loss that trains them and the bound that is reported."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.diffusion.bound.decoder import decoder
from diffcli.diffusion.chain import Chain
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match
from diffcli.diffusion.sde import SDE


@dataclass(frozen=True)
class Terms:
    """L_{i-1} and L_0 of an item at one noise, as in `loss.VLB`; variance: small, large, learned; levels of the data."""

    variance: str
    levels: int | None

    def read(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: dict) -> tuple[Tensor, Tensor | float]:
        """eps_theta - eps at one level an item, and v."""
        xt = denoiser.sde.perturb(x0, t, eps)
        if self.variance == "learned":
            _, found, v = denoiser.moments(xt, t, **cond)
            return found - eps, v
        return denoiser.eps(xt, t, **cond) - eps, float(self.variance == "large")

    def __call__(self, chain: Chain, i: Tensor, x0: Tensor, error: Tensor, v: Tensor | float) -> Tensor:
        """L_i of each item (B,) in nats for its own row i of the chain: L_0 where i = 0, else a KL between Gaussians."""
        first = i == 0
        gap = match(chain.gap[i], error) * v  # log(variance / small)
        gain = match(torch.where(first, 0.0, chain.gain[i]), error)
        # e^-g - 1 + g together: they cancel where the two variances are close
        kl = 0.5 * (torch.expm1(-gap) + gap + torch.exp(-gap) * gain * error**2).flatten(1).sum(1)
        if not first.any():
            return kl
        # x0 - x0_hat = (sigma/alpha)(eps_theta - eps)
        miss = chain.noise[0] * error[first].double()
        log_std = 0.5 * (chain.log_small[0] + chain.gap[0] * (v[first].double() if isinstance(v, Tensor) else v))
        nll = decoder(x0[first], miss, log_std, self.levels).flatten(1).sum(1)
        return kl.masked_scatter(first, nll.to(kl.dtype))


def prior_term(sde: SDE, x0: Tensor, t: Tensor) -> Tensor:
    """L_T = KL(N(alpha x_0, sigma^2 I) || N(0, prior_std^2 I)) in nats (B,), alpha and sigma at t.

    `StandardPrior.kl` is the same number; this one can be differentiated by what the SDE may learn.
    """
    ratio = (sde.sigma(t) / sde.prior_std) ** 2
    square = x0.double().flatten(1).square().sum(1) * (sde.alpha(t) / sde.prior_std) ** 2
    return (0.5 * (x0[0].numel() * (ratio - 1 - torch.log(ratio)) + square)).to(x0.dtype)
