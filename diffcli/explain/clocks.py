"""The same noise level on the clocks of other programs: every map goes through lam, and is nan where a clock has no such point.

At equal lam two states are proportional, `x' = (alpha'/alpha) x`, and their denoisers' x0_hat are the same.
Karras et al. 2022, app. C, arXiv:2206.00364; Kingma & Gao 2023, arXiv:2303.00848.
"""

import math

import torch
from torch import Tensor

from diffcli.diffusion.numeric import softplus
from diffcli.diffusion.sde import SDE

BETA = (0.1, 20.0)  # score_sde's VP: beta(t) linear, t in [EPS, 1]
SIGMA = (0.01, 50.0)  # score_sde's VE: sigma(t) geometric
EPS = 1e-5
LEVELS = 1000  # score_sde's discrete VE levels, DDPM's T
DDPM_BETA = (1e-4, 0.02)


def _within(t: Tensor, low: float, high: float) -> Tensor:
    """t, or nan outside [low, high]; what lies outside by round-off alone is moved to the end."""
    slack = 1e-9 * (high - low)
    inside = (t >= low - slack) & (t <= high + slack)
    return torch.where(inside, t.clamp(low, high), math.nan)


def score_sde_vp(lam: Tensor) -> Tensor:
    """t of score_sde's VP-SDE, where `alpha^2 = e^-B`, `B = BETA[0] t + (BETA[1] - BETA[0]) t^2 / 2`.

    Song et al. 2021, eq. 32-33, arXiv:2011.13456.
    """
    b = softplus(-2 * lam)
    return _within(2 * b / (BETA[0] + torch.sqrt(BETA[0] ** 2 + 2 * (BETA[1] - BETA[0]) * b)), EPS, 1)


def score_sde_ve(lam: Tensor) -> Tensor:
    """t of score_sde's VE-SDE, `sigma = SIGMA[0] (SIGMA[1]/SIGMA[0])^t`.  Song et al. 2021, eq. 30, arXiv:2011.13456."""
    return _within((-lam - math.log(SIGMA[0])) / math.log(SIGMA[1] / SIGMA[0]), EPS, 1)


def score_sde_ve_index(lam: Tensor) -> Tensor:
    """Index 0 ... 999 in score_sde's table of VE levels, geometric from SIGMA[0] to SIGMA[1], fractional."""
    t = (-lam - math.log(SIGMA[0])) / math.log(SIGMA[1] / SIGMA[0])
    return _within((LEVELS - 1) * t, 0, LEVELS - 1)


def ddpm_lam() -> Tensor:
    """lam of the T = 1000 levels of DDPM, betas linear from 1e-4 to 0.02.  Ho et al. 2020, sec. 4, arXiv:2006.11239."""
    betas = torch.linspace(*DDPM_BETA, LEVELS, dtype=torch.float64)
    log_alphabar = torch.log1p(-betas).cumsum(0)
    return 0.5 * (log_alphabar - torch.log(-torch.expm1(log_alphabar)))


def ddpm_index(lam: Tensor) -> Tensor:
    """Index i = 1 ... 1000 of DDPM, between its levels linear in lam; the `timestep` of its code is i - 1."""
    return 1 + position(-ddpm_lam(), -lam)


def edm_sigma(lam: Tensor) -> Tensor:
    """EDM's time, `sigma = sigma/alpha`: any number above 0.  Karras et al. 2022, eq. 1."""
    return torch.exp(-lam)


def edm_c_noise(lam: Tensor) -> Tensor:
    """What EDM's network is given of it, `log(sigma) / 4`.  Karras et al. 2022, table 1."""
    return -lam / 4


def flow_time(lam: Tensor) -> Tensor:
    """Time of flow matching, from noise at 0 to data at 1: `x = t data + (1 - t) noise`, `t = alpha / (alpha + sigma)`.

    Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """
    return torch.sigmoid(lam)


def position(levels: Tensor, x: Tensor) -> Tensor:
    """Where x stands among increasing levels: 0 at the first, linear between two, nan outside."""
    inside = _within(x, levels[0].item(), levels[-1].item())
    right = torch.searchsorted(levels, x.contiguous()).clamp(1, len(levels) - 1)
    low, high = levels[right - 1], levels[right]
    return (right - 1) + (inside - low) / (high - low)


def clocks(sde: SDE, t: Tensor) -> dict[str, Tensor]:
    """Each clock's reading at our times t (n,), and the factors from our state to the states of the other programs.

    own_i is the index among the model's own training levels, where it has any.
    """
    lam, alpha, sigma = sde.lam(t), sde.alpha(t), sde.sigma(t)
    own = {} if sde.times is None else {"own_i": 1 + position(sde.times.double().sort().values, t)}
    return {
        "t": t,
        "log_snr_nats": 2 * lam,
        "snr_db": 20 / math.log(10) * lam,
        "score_sde_vp_t": score_sde_vp(lam),
        "score_sde_ve_t": score_sde_ve(lam),
        "score_sde_ve_i": score_sde_ve_index(lam),
        "ddpm_i": ddpm_index(lam),
        **own,
        "edm_sigma": edm_sigma(lam),
        "edm_c_noise": edm_c_noise(lam),
        "flow_t": flow_time(lam),
        "x_vp_over_x": 1 / torch.sqrt(alpha**2 + sigma**2),
        "x_edm_over_x": 1 / alpha,
        "x_flow_over_x": 1 / (alpha + sigma),
    }
