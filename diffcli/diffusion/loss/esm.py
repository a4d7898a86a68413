"""Explicit score matching, to a known score or to that of a kernel density estimate."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.kernel_density import GaussianKDE, scott
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.loss.noised import level_weight, require_score
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.time_sampling import Uniform


class ESM(Loss):
    """`1/2 w(t) ||s_theta(x, t) - grad log q_t(x)||^2`, x ~ q_t: regression on a score that is known.

    target: known (q_0 is the data's own density), or kde (the training items' Gaussian kernel density estimate, whose noised
    score is known; x is drawn from it too).  bandwidth: of the estimate; auto is Scott's rule.  w is sigma^2 across the levels
    of a process, 1 at one level.  Raises ValueError for another target, a bandwidth that is not above 0, and in setup for
    data whose density is not known.  Of a condition only the label has a known score, that of a mixture's component; the
    estimate is of all items, so that setup raises ValueError for any other.  Vincent 2011, sec. 2-3.
    """

    def __init__(self, target: Literal["kde", "known"] = "kde", bandwidth: float | Literal["auto"] = "auto"):
        super().__init__()
        require(target in TARGETS, f"target must be one of {', '.join(TARGETS)}, got {target}")
        require(bandwidth == "auto" or bandwidth > 0, f"bandwidth must be above 0, got {bandwidth}")
        self.time, self.make, self.bandwidth = Uniform(), TARGETS[target], bandwidth
        self.target = None

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require_score(denoiser, data.shape)
        self.target = self.make(data, self.bandwidth)
        require(
            data.condition in self.make.conditions,
            f"esm fits the score of all items, which is not that of each {data.condition}: take loss=dsm, or loss.target=known "
            "with data=mixture condition=label",
        )

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        sde = denoiser.sde
        t, importance = self.time(sde, x0.shape[0], draw)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        std = self.target.std(alpha, sigma)
        x = match(alpha, x0) * x0 + match(std, x0) * draw.normal("eps", x0.shape, x0.dtype)
        wanted = self.target.score(x.flatten(1), alpha, sigma, **cond).view_as(x)
        w = level_weight(sde, t).sqrt()
        error = match(w, x) * denoiser.score(x, t, **cond) - (match(w, wanted) * wanted).to(x.dtype)
        return 0.5 * importance.to(error) * error.flatten(1).square().sum(1)


class Known:
    """The data's own density, a Gaussian mixture; x is the item noised.  conditions: given which it knows the score."""

    conditions = ("none", "label")

    def __init__(self, data: TrainingSet, bandwidth):
        require(
            data.mixture is not None, "target=known needs data whose density is known (data=mixture): loss.target=kde"
        )
        self.score = data.mixture.score

    def std(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma


class Estimated:
    """The items' kernel density estimate; x is the item widened and noised."""

    conditions = ("none",)

    def __init__(self, data: TrainingSet, bandwidth):
        items = data.items()
        self.estimate = GaussianKDE(items.flatten(1), scott(items) if bandwidth == "auto" else bandwidth)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.estimate.to(x.device).score(x, alpha, sigma)

    def std(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.sqrt(self.estimate.variance(alpha, sigma))


TARGETS = {"kde": Estimated, "known": Known}
