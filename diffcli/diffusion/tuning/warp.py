"""Times moved by few numbers, and those numbers by Gauss-Newton."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from diffcli.diffusion.sde import SDE

NUMBERS = 4  # of the warp
STEP = 0.02  # by which a number is moved to see what it does: large, as the model may be float32


def warped(sde: SDE, times: Tensor, numbers: Tensor) -> Tensor:
    """The times with every step in lam multiplied by `exp(sum_k numbers_k cos(pi k u))`, u from 0 to 1, its ends kept."""
    lam = sde.lam(times)
    u = (torch.arange(len(lam) - 1, dtype=torch.float64) + 0.5) / (len(lam) - 1)
    k = torch.arange(1, len(numbers) + 1, dtype=torch.float64)
    gaps = lam.diff() * torch.exp(torch.cos(math.pi * u[:, None] * k) @ numbers)
    moved = lam[0] + gaps.cumsum(0) * ((lam[-1] - lam[0]) / gaps.sum())
    return torch.cat([times[:1], sde.time(moved[:-1]), times[-1:]])


def improve(
    error: Callable[[Tensor], Tensor], steps: int, rounds: int, progress: Callable[[Iterable[int]], Iterable[int]]
) -> Tensor:
    """Numbers of `warped` whose error(numbers) (B, d) is less, by damped Gauss-Newton steps on `sum_b log(e_b^2 + median e^2)`."""
    count = min(NUMBERS, steps - 1)
    numbers, damping = torch.zeros(count, dtype=torch.float64), 1e-2
    if count == 0 or rounds == 0:
        return numbers
    e = error(numbers)
    for _ in progress(range(rounds)):
        scale = (e**2).sum(1).median()
        if scale == 0:
            break
        moves = torch.stack([(error(numbers + STEP * unit) - e) / STEP for unit in torch.eye(count).double()], 2)
        w = 1 / ((e**2).sum(1) + scale)
        hessian, slope = torch.einsum("b,bdp,bdq->pq", w, moves, moves), torch.einsum("b,bdp,bd->p", w, moves, e)
        now = _loss(e, scale)
        for _ in range(4):
            step = torch.linalg.solve(hessian + damping * torch.diag(hessian.diagonal() + 1e-300), -slope)
            new = numbers + step.clamp(-0.5, 0.5)
            there = error(new)
            if _loss(there, scale) < now:
                numbers, e, damping = new, there, damping / 4
                break
            damping *= 8
        else:
            break
    return numbers


def _loss(e: Tensor, scale: Tensor) -> float:
    loss = torch.log1p((e**2).sum(1) / scale).sum().item()
    return loss if math.isfinite(loss) else math.inf
