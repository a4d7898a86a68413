"""The variational bound of a discrete chain, with all its terms."""

import math
from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.chain import Chain, levels_of
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.variance import VARIANCES, check_variance

FAR = 1e5  # in standard deviations, the open end of an outer bin


class VLB(Loss):
    """`-log p(x_0) <= L_T + sum_{i>1} L_{i-1} + L_0` in nats an item, of the chain x_T, ..., x_1, x_0 on any path.

        L_T      KL(q(x_T | x_0) || prior)
        L_{i-1}  KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) = 1/2 sum [ e^{-v g} (1 + (e^{2h} - 1)(eps_theta - eps)^2) - 1 + vg ]
        L_0      -log of N(x0_hat(x_1), sigma_1^2) integrated over the item's own bin, half a level each side, outer bins
                 open-ended; -log N(x_0; x0_hat(x_1), sigma_1^2) for data without levels

    with h = lam_{i-1} - lam_i, g = log(large / small).  variance: of p(x_{i-1} | x_i), small (v = 0), large (v = 1), or
    learned (v of the model's second output).  A step draws one level an item, i uniform on 1 ... T and stratified over the
    batch: `L_T + T L_{i-1}` is an unbiased estimate of the bound.  Where the variance is learned the loss is
    `||eps_theta - eps||^2 + hybrid (L_T + T L_{i-1})`, in whose second part the mean is detached.
    T: number of levels on a continuous schedule, default 1000, at t_max i/T; a chain has its own.

    x_0 is the centre of its level, whatever noise it was dequantised with: the bound is that of the level's probability.

    Raises ValueError unless T >= 2 and hybrid > 0, for another variance, and in setup for a learned one that the model lacks.
    Ho et al. 2020, eq. 5, 8 and 13, arXiv:2006.11239; Nichol & Dhariwal 2021, sec. 3.1, arXiv:2102.09672;
    Kingma et al. 2021, eq. 13, arXiv:2107.00630 (on any path).
    """

    def __init__(
        self,
        T: int | None = None,
        variance: Literal["small", "large", "learned"] = "small",
        hybrid: float = 0.001,
    ):
        super().__init__()
        require(T is None or T >= 2, f"T must be at least 2, got {T}")
        require(variance in VARIANCES, f"variance must be one of {', '.join(VARIANCES)}, got {variance}")
        require(hybrid > 0, f"hybrid must be above 0, got {hybrid}")
        self.T, self.variance, self.hybrid = T, variance, float(hybrid)
        self.levels: int | None = None

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        check_variance(self.variance, denoiser)
        Chain.of(denoiser.sde, self.T)
        self.levels = data.levels

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        chain, x0 = Chain.of(denoiser.sde, self.T, x0.device), self._centres(x0)
        t, _ = levels_of(denoiser.sde, self.T)(denoiser.sde, x0.shape[0], draw)
        i = torch.searchsorted(chain.t, t)
        error, v = self._read(denoiser, x0, t, draw.normal("eps", x0.shape, x0.dtype), cond)
        learned = self.variance == "learned"
        term = self._term(chain, i, x0, error.detach() if learned else error, v)
        bound = len(chain.t) * term + prior_term(denoiser, x0, chain.t[-1])
        if not learned:
            return bound
        return error.flatten(1).square().sum(1) + self.hybrid * bound

    def terms(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        """Every term of the given items at one noise a level, (B, T + 1): L_0, L_1, ..., L_T; their sum is the bound."""
        chain, x0 = Chain.of(denoiser.sde, self.T, x0.device), self._centres(x0)
        found = []
        for row in range(len(chain.t)):
            i = torch.full((x0.shape[0],), row, device=x0.device)
            error, v = self._read(denoiser, x0, chain.t[i], draw.normal(f"eps {row}", x0.shape, x0.dtype), cond)
            found.append(self._term(chain, i, x0, error, v))
        return torch.stack([*found, prior_term(denoiser, x0, chain.t[-1])], dim=1)

    def _centres(self, x0: Tensor) -> Tensor:
        """The centre `2 (k + 1/2)/N - 1` of each value's level, or the values themselves."""
        if self.levels is None:
            return x0
        k = torch.floor((x0.double() + 1) * (self.levels / 2)).clamp(0, self.levels - 1)
        return ((2 * k + 1) / self.levels - 1).to(x0.dtype)

    def _read(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: dict
    ) -> tuple[Tensor, Tensor | float]:
        """eps_theta - eps at one level an item, and v."""
        xt = denoiser.sde.perturb(x0, t, eps)
        if self.variance == "learned":
            _, found, v = denoiser.moments(xt, t, **cond)
            return found - eps, v
        return denoiser.eps(xt, t, **cond) - eps, float(self.variance == "large")

    def _term(self, chain: Chain, i: Tensor, x0: Tensor, error: Tensor, v: Tensor | float) -> Tensor:
        """L_i of each item (B,) for its own row i: L_0 where i = 0, else a KL between Gaussians."""
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
        nll = self._decoder(x0[first], miss, log_std).flatten(1).sum(1)
        return kl.masked_scatter(first, nll.to(kl.dtype))

    def _decoder(self, x0: Tensor, miss: Tensor, log_std: Tensor) -> Tensor:
        """-log of N(x0 - miss, std^2) at each value, integrated over the value's bin where the data have levels."""
        z = miss * torch.exp(-log_std)
        if self.levels is None:
            return 0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)
        half = torch.exp(-log_std) / self.levels
        edge = 1 - 2 / self.levels  # beyond it lie the centres of the outer levels only
        low = torch.where(x0 < -edge, z.detach() - FAR, z - half)
        high = torch.where(x0 > edge, z.detach() + FAR, z + half)
        # the smaller tail: Phi(high) - Phi(low) = Phi(-low) - Phi(-high)
        flip = low + high > 0
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        top = torch.special.log_ndtr(high)
        return -top - torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))


def prior_term(denoiser: Denoiser, x0: Tensor, t: Tensor) -> Tensor:
    """L_T = KL(N(alpha x_0, sigma^2 I) || N(0, prior_std^2 I)) in nats (B,), alpha and sigma at t."""
    sde = denoiser.sde
    ratio = (sde.sigma(t) / sde.prior_std) ** 2
    square = x0.double().flatten(1).square().sum(1) * (sde.alpha(t) / sde.prior_std) ** 2
    return (0.5 * (x0[0].numel() * (ratio - 1 - torch.log(ratio)) + square)).to(x0.dtype)
