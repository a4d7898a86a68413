"""One noise level: the single-noise score-based model, with no process around it."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde.base import SDE


class OneLevel(SDE):
    """`x = alpha x0 + sigma eps` at one level for every t; sigma = 0 is the data itself (no eps, no x0 reading of a score).

    There is nothing to walk along: f = 0 and g = 0.  Its prior is no more than where Langevin starts: N(0, I).
    Raises ValueError unless alpha > 0 and sigma >= 0.  Hyvärinen 2005 (sigma = 0); Vincent 2011.
    """

    is_process = False
    prior_std = 1.0

    def __init__(self, alpha: float = 1.0, sigma: float = 0.1):
        super().__init__()
        require(alpha > 0, f"alpha must be above 0, got {alpha}")
        require(sigma >= 0, f"sigma must be at least 0, got {sigma}")
        self.level = float(alpha), float(sigma)
        self.t_min, self.t_max = 0.0, 0.0  # the only time there is, so that networks are told one level

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.log(self.level[0]))

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.log(self.level[1]) if self.level[1] else -math.inf)

    def time(self, lam: Tensor) -> Tensor:
        return torch.zeros_like(lam)
