"""The variational bound of a discrete chain, reported with its terms apart."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.bound.base import Part, Strata, VariationalBound
from diffcli.diffusion.bound.decoder import centres
from diffcli.diffusion.bound.terms import Terms
from diffcli.diffusion.chain import Chain
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import require
from diffcli.diffusion.prior import Prior
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.variance import VARIANCES, check_variance


class DiscreteBound(VariationalBound):
    """`-log p(x_0) <= L_T + sum_{i>1} L_{i-1} + L_0` of the chain x_T, ..., x_1, x_0 on any path: `loss.VLB`, reported.

    times: noises an item of the sum; its strata are equally long in lam, a level is drawn with probability `h/sum h` and
    its term divided by it.  Where the chain has no more than times/2 steps each is a stratum.  all: every level at one
    noise; the error is then told from neighbouring levels, and a little too large.
    T: levels on a continuous path, default 1000.  variance: of a reverse step, small, large or learned.
    With levels an item is the centre of its own, and the bound is that of the level's probability.
    Raises ValueError for unfit values, and in setup for a model that lacks what is asked.
    Ho et al. 2020, eq. 5, arXiv:2006.11239; Kingma et al. 2021, eq. 13, arXiv:2107.00630.
    """

    per = "level"

    def __init__(
        self,
        times: int | Literal["all"] = 64,
        T: int | None = None,
        variance: Literal["small", "large", "learned"] = "small",
    ):
        super().__init__(times)
        require(T is None or T >= 2, f"T must be at least 2, got {T}")
        require(variance in VARIANCES, f"variance must be one of {', '.join(VARIANCES)}, got {variance}")
        self.T, self.variance = T, variance

    def setup(self, denoiser: Denoiser, prior: Prior | None = None, levels: int | None = None) -> None:
        super().setup(denoiser, prior, levels)
        check_variance(self.variance, denoiser)
        self.terms, self.chain = Terms(self.variance, levels), Chain.of(denoiser.sde, self.T)
        steps = len(self.chain.t) - 1
        self.each = self.times == "all" or self.times // 2 >= steps
        self.count = steps if self.each else self.times // 2
        h = torch.log1p(self.chain.gain[1:])
        share = torch.full_like(h, 1 / steps) if self.each else h / h.sum()
        self.share, self.ends = share, torch.cat([share.new_zeros(1), share.cumsum(0)])

    def strata(self, sde: SDE) -> Strata:
        """The measure of a stratum is its number of levels, which need not be whole; i - 1 -> i is drawn at t_i."""
        edges = torch.linspace(0, 1, self.count + 1, dtype=torch.float64)
        i = (torch.searchsorted(self.ends, edges, right=True) - 1).clamp(0, len(self.share) - 1)
        at = i + (edges - self.ends[i]) / self.share[i]
        whole = at.floor().long().clamp(0, len(self.share) - 1)
        t = self.chain.t[whole] + (at - whole) * (self.chain.t[whole + 1] - self.chain.t[whole])
        return Strata(t[:-1], t[1:], at.diff())

    def _begin(self, denoiser, x0):
        if self.chain.t.device != x0.device:
            self.chain = Chain.of(denoiser.sde, self.T, x0.device)
        return centres(x0, self.levels), self.count, 1 if self.times == "all" else 2

    def _part(self, denoiser, x0, j, u, eps, cond):
        if self.each:
            i = torch.full((len(u),), j + 1, device=x0.device)
            return self._term(denoiser, x0, i, eps, cond)
        at = (j + u.cpu()) / self.count
        row = (torch.searchsorted(self.ends, at, right=True) - 1).clamp(0, len(self.share) - 1)
        weight = (1 / (self.share[row] * self.count)).to(x0.device)
        part = self._term(denoiser, x0, row.to(x0.device) + 1, eps, cond)
        slope = None if part.slope is None else weight * part.slope
        return part._replace(value=weight * part.value.double(), slope=slope)

    def _reconstruction(self, denoiser, x0, eps, cond):
        first = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        return self._term(denoiser, x0, first, eps, cond)._replace(slope=None)

    def _term(self, denoiser: Denoiser, x0: Tensor, i: Tensor, eps: Tensor, cond: dict) -> Part:
        chain = self.chain
        error, v = self.terms.read(denoiser, x0, chain.t[i], eps, cond)
        slope = None if isinstance(v, Tensor) else 0.5 * torch.exp(-chain.gap[i] * v) * chain.gain[i]
        return Part(self.terms(chain, i, x0, error, v), slope, error, eps)
