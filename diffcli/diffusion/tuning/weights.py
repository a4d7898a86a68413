"""The weights of every step by least squares, one step after the other, along the walk that they make."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.samplers.tuned import FORM

RIDGE = 1e-8  # of the change of the weights, relative: how far what the readings cannot tell apart may take them
AGAIN = 6  # solutions of each step, with the starts weighted anew


def fitted_weights(
    bound: Callable[[range], Denoiser],
    starts: Tensor,
    times: Tensor,
    base: Tensor,
    target: Callable[[Tensor], Tensor],
    batch: int,
    ridge: float = RIDGE,
) -> tuple[Tensor, Tensor]:
    """W (steps, steps + 1) of `TunedSampler` and x at the last time: each step is the combination of x and all readings so far
    that comes nearest to `target(time)` (B, *S).

    Near in the sum over starts of `log(e^2 + median e^2)`, so that the few starts between two modes, whose error is many times
    the others', do not decide; from `base`, whose change is held by a ridge.  Evaluates the model once a step.
    """
    sde, weights, x, readings = bound(range(1)).sde, base.clone(), starts, []
    p, q = (c.tolist() for c in FORM.reading(sde, times))
    rows = [range(i, min(i + batch, len(starts))) for i in range(0, len(starts), batch)]
    for i in range(len(times) - 1):
        parts = [bound(r).reading(x[r.start : r.stop], times[i], p[i], q[i]) for r in rows]
        readings.append(torch.cat(parts))
        guess, wanted = _combined(weights[i], x, readings), target(times[i + 1])
        gram, side, square = [], [], []
        for r in rows:  # moments of each start, so that its weight may change without a look at the states
            a = torch.stack([c[r.start : r.stop].double().flatten(1) for c in (x, *readings)], dim=2)
            e = (wanted[r.start : r.stop] - guess[r.start : r.stop]).double().flatten(1)
            gram.append(a.mT @ a)
            side.append((a.mT @ e[..., None])[..., 0])
            square.append((e**2).sum(1))
        change = _robust(torch.cat(gram), torch.cat(side), torch.cat(square), ridge).to(weights)
        weights[i, : i + 2] += change
        x = _combined(weights[i], x, readings)
    return weights, x


def _combined(row: Tensor, x: Tensor, readings: list[Tensor]) -> Tensor:
    c = row.tolist()
    so_far = c[1 : len(readings) + 1]
    return sum((w * g for w, g in zip(so_far, readings, strict=True) if w), c[0] * x)


def _robust(gram: Tensor, side: Tensor, square: Tensor, ridge: float) -> Tensor:
    """The c that makes `sum_b log(e_b^2 + median)` least, `e_b^2 = square - 2 c side + c gram c`, for gram (B, P, P)."""
    size = gram.diagonal(dim1=1, dim2=2).sum(0).sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    gram, side = gram / (size[:, None] * size), side / size
    c, eye = torch.zeros_like(size), torch.eye(len(size)).to(gram)
    for _ in range(AGAIN):
        e2 = (square - 2 * side @ c + (gram @ c) @ c).clamp_min(0)
        total = e2 + e2.median()
        w = torch.where(total > 0, 1 / total, torch.zeros_like(total))
        if not bool((w > 0).any()):
            break
        w = w / w.mean()
        c = torch.linalg.solve(torch.einsum("b,bpq->pq", w, gram) + ridge * eye, w @ side)
    return c / size
