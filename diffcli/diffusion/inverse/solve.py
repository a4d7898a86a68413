"""Linear systems of a measurement, for many items at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.diffusion.numeric import match


def solve(
    forth: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    shift: float,
    b: Tensor,
    iterations: int,
    memory: int = 1,
) -> Tensor:
    """`w = back(u)` (B, *S) of the u with `(forth back + shift I) u = b` (B, *M), item by item, by conjugate residuals.

    forth (B, *S) -> (B, *M) and back (B, *M) -> (B, *S) are linear, each asked once an iteration.  Each iterate has the least
    residual of its Krylov space, whether the matrix is singular, b out of its range, or the matrix not positive: nothing
    grows without bound.  With memory=1 it must be symmetric; otherwise directions are kept orthogonal to the last `memory`.
    An item rests once its residual is round-off, and none knows of the others.  Products are summed in float64.
    Stiefel 1955; Eisenstat, Elman & Schultz 1983, alg. 2.1 (GCR).
    """
    r, w, kept = b, None, []
    floor = (10 * torch.finfo(b.dtype).eps) ** 2 * _dot(b, b)
    for _ in range(iterations):
        active = _dot(r, r) > floor
        if w is not None and not active.any():
            break
        carried = back(r)
        image = forth(carried) + shift * r
        for old_carried, old_image, norm in kept:
            beta = _ratio(_dot(image, old_image), norm)
            image, carried = image - match(beta, b) * old_image, carried - match(beta, carried) * old_carried
        norm = _dot(image, image)
        step = torch.where(active, _ratio(_dot(r, image), norm), 0.0)
        r = r - match(step, b) * image
        move = match(step, carried) * carried
        w = move if w is None else w + move
        kept = [*kept, (carried, image, norm)][-memory:]
    return w


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> (B,) of each item in float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
