"""The variational bound of a discrete chain, with all its terms."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.bound.decoder import centres
from diffcli.diffusion.bound.terms import Terms, prior_term
from diffcli.diffusion.chain import Chain, levels_of
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import require
from diffcli.diffusion.variance import VARIANCES, check_variance


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
        chain, x0 = Chain.of(denoiser.sde, self.T, x0.device), centres(x0, self.levels)
        t, _ = levels_of(denoiser.sde, self.T)(denoiser.sde, x0.shape[0], draw)
        i = torch.searchsorted(chain.t, t)
        terms = Terms(self.variance, self.levels)
        error, v = terms.read(denoiser, x0, t, draw.normal("eps", x0.shape, x0.dtype), cond)
        learned = self.variance == "learned"
        term = terms(chain, i, x0, error.detach() if learned else error, v)
        bound = len(chain.t) * term + prior_term(denoiser.sde, x0, chain.t[-1])
        if not learned:
            return bound
        return error.flatten(1).square().sum(1) + self.hybrid * bound

    def terms(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        """Every term of the given items at one noise a level, (B, T + 1): L_0, L_1, ..., L_T; their sum is the bound."""
        chain, x0 = Chain.of(denoiser.sde, self.T, x0.device), centres(x0, self.levels)
        found, terms = [], Terms(self.variance, self.levels)
        for row in range(len(chain.t)):
            i = torch.full((x0.shape[0],), row, device=x0.device)
            error, v = terms.read(denoiser, x0, chain.t[i], draw.normal(f"eps {row}", x0.shape, x0.dtype), cond)
            found.append(terms(chain, i, x0, error, v))
        return torch.stack([*found, prior_term(denoiser.sde, x0, chain.t[-1])], dim=1)
