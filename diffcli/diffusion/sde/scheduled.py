"""SDEs whose path follows from a schedule's l(t); any of them takes any schedule."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.numeric import log_sigmoid, require, softplus
from diffcli.diffusion.schedule import Schedule
from diffcli.diffusion.sde.base import SDE


class Scheduled(SDE):
    """An SDE that writes `log_alpha` and `log_sigma` as functions of the schedule's l, and `schedule_value` where lam is not l.

    t_min is the schedule's own unless it is given.
    """

    def __init__(self, schedule: Schedule, t_min: float | None = None):
        super().__init__()
        require(bool(schedule), "it follows a schedule, and schedule=none is given")  # of a config: {}
        self.schedule = schedule
        self.times, self.t_stop = schedule.times, schedule.t_stop
        t_min = schedule.t_min if t_min is None else t_min
        if self.times is not None:
            first = self.times[0].item()
            require(t_min >= first, f"t_min = {t_min} lies before the first level, at t = {first:g}")
        self._set_range(t_min, schedule.t_max)

    def schedule_value(self, lam: Tensor) -> Tensor:
        """The schedule's l at which this path has half log-SNR lam; the two are the same unless a path says otherwise."""
        return lam

    def time(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`."""
        return self.schedule.inverse(self.schedule_value(lam))


class VP(Scheduled):
    """Variance preserving: `alpha^2 = sigmoid(2 l)`, `sigma^2 = sigmoid(-2 l)`; `f = -beta/2`, `g^2 = beta`.

    The prior is the stationary N(0, I).  Song et al. 2021, eq. 11, arXiv:2011.13456.
    """

    prior_std = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * log_sigmoid(2 * self.schedule(t))

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * log_sigmoid(-2 * self.schedule(t))


class SubVP(Scheduled):
    """Sub-VP: VP's alpha, `sigma = sigmoid(-2 l)`; `f = -beta/2`, `g^2 = beta (1 - e^{-2B})`.

    Its lam is `2 l + log(1 + e^{-2 l}) / 2`.  Song et al. 2021, eq. 13-14, arXiv:2011.13456.
    """

    prior_std = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * log_sigmoid(2 * self.schedule(t))

    def log_sigma(self, t: Tensor) -> Tensor:
        return log_sigmoid(-2 * self.schedule(t))

    def schedule_value(self, lam: Tensor) -> Tensor:
        # u = e^{2 l} solves u^2 + u = e^{2 lam}; in logs, so that no lam overflows
        return 0.5 * (math.log(2) + 2 * lam - softplus(0.5 * softplus(2 * lam + math.log(4))))


class VE(Scheduled):
    """Variance exploding: `alpha = 1`, `sigma = e^{-l}`; `f = 0`, `g^2 = d(sigma^2)/dt`.

    The prior is N(0, sigma_max^2 I).  Song et al. 2021, eq. 9, arXiv:2011.13456.
    """

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return -self.schedule(t)


class Flow(Scheduled):
    """Linear interpolant, `alpha = sigmoid(l)`, `sigma = sigmoid(-l)`: `1 - t` and `t` on its usual schedule (logit).

    Its straight paths are those of rectified flow and flow matching, whose own time runs from noise to data.  The prior is
    N(0, I).  Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003; Albergo & Vanden-Eijnden 2023,
    arXiv:2209.15571.
    """

    prior_std = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return log_sigmoid(self.schedule(t))

    def log_sigma(self, t: Tensor) -> Tensor:
        return log_sigmoid(-self.schedule(t))
