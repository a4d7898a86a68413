"""What a log-density without its normaliser integrates to, on a grid, in one or two dimensions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import require

CHUNK = 4096  # points of the grid at once
FINER = 16  # so many times the cells where there is one axis


def check_grid(n: int) -> None:
    """Raise ValueError for a number of cells whose half is not one too; 0 is no grid."""
    require(n == 0 or (n >= 4 and n % 2 == 0), f"grid must be even and at least 4, or 0 for none, got {n}")


class Normaliser(NamedTuple):
    """log of the integral of exp(log_p), an estimate of its error, and how many points it took."""

    log_z: float
    error: float
    points: int

    def findings(self) -> dict[str, float]:
        return {"log_normaliser": self.log_z, "log_normaliser_error": self.error, "grid_points": self.points}


def data_box(items: Tensor, width: float) -> Tensor:
    """The range (2, d) of items (N, *S), wider by half of it and by 6 widths at each end."""
    items = items.flatten(1).double()
    low, high = items.amin(0), items.amax(0)
    pad = 0.5 * (high - low) + 6 * width
    return torch.stack([low - pad, high + pad])


def normaliser(log_p, box: Tensor, n: int) -> Normaliser:
    """log of the sum of `exp(log_p(x)) h^d` over a box (2, d) in n cells an axis (16 n in d = 1), for `log_p (R, d) -> (R,)`.

    Its error falls exponentially with the width of the finest structure over the spacing h.  That estimate is the change when
    every second point is left out, and the mass on the edge of the box, continued beyond it at the rate at which it falls there.
    Trefethen & Weideman 2014 (the trapezoidal rule).
    """
    n = n * FINER if box.shape[1] == 1 else n
    axes = [torch.linspace(low, high, n + 1, dtype=torch.float64) for low, high in box.T.tolist()]
    x = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    values = torch.cat([log_p(part).double().cpu() for part in x.split(CHUNK)]).view([n + 1] * len(axes))
    cell = (box[1] - box[0]).log().sum().item() - len(axes) * math.log(n)
    total = torch.logsumexp(values.flatten(), 0)
    coarse = values[(slice(None, None, 2),) * len(axes)]
    halved = torch.logsumexp(coarse.flatten(), 0) + len(axes) * math.log(2)
    within = [torch.logsumexp(values[(slice(k, n + 1 - k),) * len(axes)].flatten(), 0) for k in (1, 2)]
    first, second = (
        -torch.expm1(part - total).clamp(max=0) for part in within
    )  # of the outermost cells, and the next too
    falls = torch.where(first > 0, first / (second - first), 0.0).clamp(max=0.99)
    beyond = first / (1 - falls)
    return Normaliser((total + cell).item(), ((total - halved).abs() + beyond).item(), len(x))


def level(denoiser: Denoiser, t: float | None) -> Tensor:
    """The time of the wanted level, t_min unless it is given.  Raises ValueError where the SDE does not have it."""
    sde = denoiser.sde
    t = sde.t_min if t is None else t
    require(sde.t_min <= t <= sde.t_max, f"t must lie in [{sde.t_min:g}, {sde.t_max:g}], got {t:g}")
    return torch.tensor(t, dtype=torch.float64)
