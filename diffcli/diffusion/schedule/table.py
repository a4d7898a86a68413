"""Discrete chains as tables, DDPM's and NCSN's: ordinary schedules, continued between their levels."""

import math
from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.numeric import Constants, require
from diffcli.diffusion.schedule.base import Schedule
from diffcli.diffusion.schedule.beta import check_betas, level_of
from diffcli.diffusion.schedule.smooth import Cosine, check_sigmas


class Table(Schedule):
    """Levels l_i at increasing times t_i (both (N,) float64, N >= 2), l linear in t between them: f and g jump at the levels.

    `times` are the t_i, the levels that a loss in discrete time trains; t_min and t_max are the first and the last, beyond
    which the line goes on.  Raises ValueError unless the times rise within [0, 1] and the levels fall.
    """

    def __init__(self, times: Tensor, levels: Tensor):
        super().__init__()
        times, levels = (torch.as_tensor(a, dtype=torch.float64) for a in (times, levels))
        require(
            len(times) == len(levels) >= 2, f"a table needs at least two levels, each with its time, got {len(levels)}"
        )
        require(
            bool((times.diff() > 0).all() and times[0] >= 0 and times[-1] <= 1),
            "the times of a table must rise in [0, 1]",
        )
        require(bool((levels.diff() < 0).all()), "the levels of a table must fall as t rises")
        self.times = times
        self.t_min, self.t_max = times[0].item(), times[-1].item()
        self.table = Constants(times, levels, levels.diff() / times.diff())

    def forward(self, t: Tensor) -> Tensor:
        times, levels, slopes = self.table.on(t.device)
        i = _segment(times, t)
        return levels[i] + (t - times[i]) * slopes[i]

    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741
        times, levels, slopes = self.table.on(l.device)
        i = _segment(-levels, -l)
        return times[i] + (l - levels[i]) / slopes[i]


def _segment(knots: Tensor, x: Tensor) -> Tensor:
    """The index of the interval of increasing knots in which x lies; the outer two have no end."""
    return (torch.searchsorted(knots, x.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 2)


def _linear(T: int, beta_min: float, beta_max: float) -> Tensor:
    """Ho et al. 2020, sec. 4, arXiv:2006.11239: 1e-4 to 0.02 at T = 1000."""
    return torch.linspace(beta_min / T, beta_max / T, T, dtype=torch.float64)


def _scaled_linear(T: int, beta_min: float, beta_max: float) -> Tensor:
    """sqrt(beta) linear.  Rombach et al. 2022, arXiv:2112.10752 (their code: beta_min = 0.85, beta_max = 12)."""
    return torch.linspace(math.sqrt(beta_min / T), math.sqrt(beta_max / T), T, dtype=torch.float64) ** 2


def _cosine(T: int, beta_min: float, beta_max: float) -> Tensor:
    """`min(1 - alphabar(i/T)/alphabar((i-1)/T), 0.999)`.  Nichol & Dhariwal 2021, sec. 3.2, arXiv:2102.09672."""
    cosine = Cosine()
    a = cosine.rate * torch.arange(T + 1, dtype=torch.float64) / T + cosine.b
    # cos(p)^2 - cos(q)^2 = sin(q - p) sin(q + p)
    beta = math.sin(cosine.rate / T) * torch.sin(a[1:] + a[:-1]) / torch.cos(a[:-1]) ** 2
    return beta.clamp(max=0.999)


BETAS = {"linear": _linear, "cosine": _cosine, "scaled_linear": _scaled_linear}


class DDPM(Table):
    """The chain `x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) eps`, `t_i = i/T`; on VP `alpha(t_i)^2 = prod_{j<=i} (1 - beta_j)`.

    betas: a rule, whose beta_i is the continuous beta(t_i) / T, so that T is free; or the T numbers themselves.
    beta_min and beta_max are those of the continuous schedule, for linear and scaled_linear.
    Raises ValueError unless T >= 2 and every beta lies between 0 and 1.  Ho et al. 2020, eq. 2, arXiv:2006.11239.
    """

    def __init__(
        self,
        T: int = 1000,
        betas: Literal["linear", "cosine", "scaled_linear"] | list[float] = "linear",
        beta_min: float = 0.1,
        beta_max: float = 20.0,
    ):
        beta_min, beta_max = check_betas(beta_min, beta_max)
        if isinstance(betas, str):
            require(betas in BETAS, f"betas must be one of {', '.join(BETAS)} or a list of numbers, got {betas}")
            require(T >= 2, f"T must be at least 2, got {T}")
            beta = BETAS[betas](T, beta_min, beta_max)
            largest = beta.max().item()
            require(largest < 1, f"T = {T} is too small: beta_T would be {largest:.4g}, and must be below 1")
        else:
            beta = torch.tensor(betas, dtype=torch.float64)
            require(len(beta) >= 2, f"betas must be at least two numbers, got {len(beta)}")
            require(bool(((beta > 0) & (beta < 1)).all()), "every one of betas must lie between 0 and 1")
        n = len(beta)
        super().__init__(
            torch.arange(1, n + 1, dtype=torch.float64) / n,
            level_of(-torch.log1p(-beta).cumsum(0)),
        )


class NCSN(Table):
    """L levels of noise in geometric progression from sigma_min to sigma_max, the i-th at `t_i = (i - 1)/(L - 1)`, for VE.

    sigma_max=auto is measured on the training items (the largest distance between two) before the model is built.
    Raises ValueError unless L >= 2 and 0 < sigma_min < sigma_max.  Song & Ermon 2019, arXiv:1907.05600; 2020, arXiv:2006.09011.
    """

    def __init__(self, L: int = 232, sigma_min: float = 0.01, sigma_max: float | Literal["auto"] = 50.0):
        require(L >= 2, f"L must be at least 2, got {L}")
        low, high = check_sigmas(sigma_min, sigma_max)
        u = torch.linspace(0, 1, L, dtype=torch.float64)
        super().__init__(u, -(math.log(low) * (1 - u) + math.log(high) * u))
