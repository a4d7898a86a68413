"""Ways between two items: along a great circle of their latents, or through what noise has left of both."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.sde import SDE

PARALLEL = 1e-6  # sine of the angle below which two directions make no plane


def slerp(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """`r(w) (sin((1 - w) th) a/|a| + sin(w th) b/|b|) / sin(th)`, th the angle from a to b, `r(w) = (1 - w) |a| + w |b|`.

    The direction goes along the great circle at constant speed, the length linearly from one to the other, so that it is kept
    where both have the same; w = 0 is a and w = 1 is b to the bit.  A straight line would pass through lengths that noise never
    has.  Where a and b are parallel, opposite or zero there is no plane, and it is the line `(1 - w) a + w b`.
    a, b (B, *S), w (B,) in [0, 1]; angles in float64, the result in a's dtype.  Shoemake 1985, sec. 3.3.
    """
    u, v, w = a.double().flatten(1), b.double().flatten(1), w.to(a.device, torch.float64)
    p, q = u.norm(dim=1), v.norm(dim=1)
    # by the half angles of the unit vectors: exact for small angles and for large ones, as the cosine is not
    unit_u, unit_v = (x / n.clamp(min=torch.finfo(n.dtype).tiny)[:, None] for x, n in ((u, p), (v, q)))
    theta = 2 * torch.atan2((unit_u - unit_v).norm(dim=1), (unit_u + unit_v).norm(dim=1))
    line = (torch.sin(theta) < PARALLEL) | (p == 0) | (q == 0)
    sine = torch.where(line, 1.0, torch.sin(theta))
    r = (1 - w) * p + w * q
    on_a, on_b = torch.sin((1 - w) * theta) / sine, torch.sin(w * theta) / sine
    on_a = torch.where(line, 1 - w, on_a * (r / torch.where(line, 1.0, p)))
    on_b = torch.where(line, w, on_b * (r / torch.where(line, 1.0, q)))
    return (on_a[:, None] * u + on_b[:, None] * v).to(a.dtype).view_as(a)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle from a to b (B, *S) in degrees, (B,) float64."""
    u, v = (torch.nn.functional.normalize(x.double().flatten(1), dim=1, eps=0.0) for x in (a, b))
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)))


def noised_between(
    sde: SDE, a: Tensor, b: Tensor, w: Tensor, t: Tensor, noise, kind: Literal["shared", "own"] = "shared"
) -> Tensor:
    """`x_t = alpha ((1 - w) a + w b) + sigma eps(w)`, from where a sampler draws what lies between a and b (B, *S).

    shared: eps is one for both; own: each has its own and eps(w) goes along the great circle between them.  So the noise has
    the size that t says at every w, which a line between two noised items does not keep.  noise(name) is standard normal
    (B, *S).  Raises ValueError for another kind.  Ho et al. 2020, sec. 4.3 and fig. 8, arXiv:2006.11239.
    """
    require(kind in ("shared", "own"), f"noise must be shared or own, got {kind}")
    eps = noise("mix a")
    if kind == "own":
        eps = slerp(eps, noise("mix b"), w)
    w = match(w.to(a.device, torch.float64), a)
    return sde.perturb((1 - w) * a + w * b, t, eps)


def from_time(times: Tensor, t: float) -> Tensor:
    """The part of a grid's decreasing times below t, t before it.  Raises ValueError unless t lies within the grid."""
    first, last = times[0].item(), times[-1].item()
    require(last < t <= first, f"t must lie above {last:g} and be at most {first:g}, got {t:g}")
    return torch.cat([times.new_tensor([t]), times[times < t]])
