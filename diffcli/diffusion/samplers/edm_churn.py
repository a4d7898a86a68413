"""EDM's stochastic sampler."""

import math
from dataclasses import dataclass

import torch

from diffcli.diffusion import ode
from diffcli.diffusion.numeric import combine, require
from diffcli.diffusion.samplers.base import FixedGrid
from diffcli.diffusion.samplers.form import EpsForm
from diffcli.diffusion.samplers.runge_kutta import StagePlan, stage_plan_at, stages


@dataclass(frozen=True)
class ChurnPlan(StagePlan):
    """The plan of Heun's steps, which begin at the raised level, and what raises x_t to it: `rise x_t + churn z`."""

    rise: list[float]
    churn: list[float]


class EDMChurn(FixedGrid):
    """In `y = x/alpha` with levels `k = sigma/alpha`: raise the level by noise to `k_hat = (1 + gamma) k_t`,
    `y_hat = y_t + sqrt(k_hat^2 - k_t^2) s_noise z`, then Heun's step of the PF-ODE from k_hat to k_s;
    `gamma = min(s_churn/steps, sqrt(2) - 1)` where s_tmin <= k_t <= s_tmax, else 0.

    No level exceeds the SDE's largest, where the model was not trained: k_hat stops there, so the first step from t_max has no
    noise.  s_churn = 0 is `heun`.  s_noise above 1 makes up for a network that removes too much noise, at s_noise = 1 an
    exact model's samples have the right law.  Raises ValueError for a negative s_churn or s_tmin, s_noise <= 0, or s_tmax < s_tmin.
    Karras et al. 2022, alg. 2 and app. E.5, arXiv:2206.00364 (without its level 0: both evaluations in every step).
    """

    order = 2
    evaluations = 2

    def __init__(self, s_churn: float = 40.0, s_tmin: float = 0.05, s_tmax: float = 50.0, s_noise: float = 1.0):
        for name, value in (("s_churn", s_churn), ("s_tmin", s_tmin)):
            require(value >= 0, f"{name} must be at least 0, got {value}")
        require(s_noise > 0, f"s_noise must be above 0, got {s_noise}")
        require(s_tmax >= s_tmin, f"s_tmax must be at least s_tmin = {s_tmin}, got {s_tmax}")
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = s_churn, s_tmin, s_tmax, s_noise
        self.kind = "sde" if s_churn else "ode"

    def plan(self, sde, times):
        t, s = times[:-1], times[1:]
        k = torch.exp(-sde.lam(t))
        gamma = min(self.s_churn / len(t), math.sqrt(2) - 1) * ((k >= self.s_tmin) & (k <= self.s_tmax))
        highest = torch.exp(-sde.lam(torch.tensor(sde.t_max, dtype=torch.float64)))
        gamma = torch.minimum(gamma, highest / k - 1).clamp(min=0)
        t_hat = torch.where(gamma > 0, sde.time(sde.lam(t) - torch.log1p(gamma)), t)
        churn = sde.alpha(t_hat) * k * torch.sqrt(gamma * (2 + gamma)) * self.s_noise
        heun = stage_plan_at(EpsForm(), sde, times, [t_hat, s, s])
        return ChurnPlan(**vars(heun), rise=(sde.alpha(t_hat) / sde.alpha(t)).tolist(), churn=churn.tolist())

    def step(self, denoiser, xt, i, plan, history, noise):
        if plan.churn[i]:
            xt = combine((plan.rise[i], xt), (plan.churn[i], noise(i + 1)))
        return stages(ode.HEUN, denoiser, xt, i, plan)[0]
