"""The exact score of a finite set of items."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.fitted import Fitted
from diffcli.diffusion.kernel_density import GaussianKDE, scott
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE


class KDE(Fitted):
    """The ideal denoiser of the training items: the exact score of their empirical distribution, each item widened by
    `bandwidth` (0: the items themselves), noised to t.  Sampling it gives the items back.

    bandwidth=auto is Scott's rule.  n: how many items there are.
    Raises ValueError for a bandwidth below 0, and where at t_min the items have no width at all.
    Karras et al. 2022, app. B.3, arXiv:2206.00364.
    """

    def __init__(self, sde: SDE, shape: list[int], n: int | None = None, bandwidth: float | Literal["auto"] = 0.0):
        super().__init__(sde)
        require(bandwidth == "auto" or bandwidth >= 0, f"bandwidth must be at least 0, got {bandwidth}")
        noise = sde.sigma(torch.tensor(sde.t_min, dtype=torch.float64)).item()
        require(
            noise > 0 or bandwidth != 0, "without noise (level.sigma=0) the items have no width: network.bandwidth=auto"
        )
        self.wish, self._estimate = bandwidth, None
        self.register_buffer("centres", torch.zeros(n or 0, *shape, dtype=torch.float64))
        self.register_buffer("bandwidth", torch.tensor(0.0 if bandwidth == "auto" else bandwidth, dtype=torch.float64))

    def fit(self, data: TrainingSet, seed: int = 0) -> dict[str, float]:
        items = data.items().double()
        require(
            len(items) == len(self.centres), f"n must be the number of items, {len(items)}, got {len(self.centres)}"
        )
        self.centres = items
        if self.wish == "auto":
            self.bandwidth = torch.tensor(scott(items), dtype=torch.float64)
        return {"items": len(items), "bandwidth": self.bandwidth.item()}

    @property
    def estimate(self) -> GaussianKDE:
        """The density, of the items where they are now."""
        now = id(self.centres), self.centres._version, self.bandwidth.item()
        if self._estimate is None or self._estimate[0] != now:
            self._estimate = now, GaussianKDE(self.centres.flatten(1), now[2])
        return self._estimate[1]

    def parts(self, xt, t, **cond):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        mean = self.estimate.mean(xt.flatten(1), alpha, sigma)
        # a Gaussian posterior within each item's own width: x0 = mean + (alpha h^2 / width^2) (xt - alpha mean)
        width, h = self.estimate.variance(alpha, sigma), self.estimate.bandwidth
        return alpha * h**2 / width, sigma**2 / width, mean.to(xt.dtype).view_as(xt)

    def score(self, xt, t, **cond):
        self.count(xt)
        found = self.estimate.score(xt.flatten(1), self.sde.alpha(t), self.sde.sigma(t))
        return found.to(xt.dtype).view_as(xt)

    def log_prob(self, xt: Tensor, t: Tensor) -> Tensor:
        """log q_t(xt) in nats, (B,)."""
        return self.estimate.log_prob(xt.flatten(1), self.sde.alpha(t), self.sde.sigma(t))
