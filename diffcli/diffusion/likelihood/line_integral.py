"""The integral of a field along polygonal lines, as exactly as each item needs."""

from typing import NamedTuple

import torch
from torch import Tensor

PADDING = 16  # a kernel's last bits may depend on the batch size, but not between multiples of this
ENTRIES = 2**16  # numbers in the states of one call of the field, unless the batch itself has more
PANELS = 2  # of a leg at first, so that what lies symmetric about its middle is seen

# Gauss-Kronrod 7-15: every second node is one of Gauss's.  Kronrod 1965; Piessens et al. 1983, QUADPACK, qk15
_NODES = (
    0.991455371120812639206854697526329, 0.949107912342758524526189684047851,
    0.864864423359769072789712788640926, 0.741531185599394439863864773280788,
    0.586087235467691130294144838258730, 0.405845151377397166906606412076961,
    0.207784955007898467600689403773245, 0.0,
)  # fmt: skip
_KRONROD = (
    0.022935322010529224963732008058970, 0.063092092629978553290700663189204,
    0.104790010322250183839876322541518, 0.140653259715525918745189590510238,
    0.169004726639267902826583426598550, 0.190350578064785409913256402421014,
    0.204432940075298892414161999234649, 0.209482141084727828012999174891714,
)  # fmt: skip
_GAUSS = (
    0.129484966168869693270611432679082, 0.279705391489276667901467771423780,
    0.381830050505118944950369775488975, 0.417959183673469387755102040816327,
)  # fmt: skip
_EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def _mirrored(half: tuple[float, ...], sign: float) -> Tensor:
    return torch.tensor([*half[:-1], half[-1], *(sign * w for w in half[-2::-1])], dtype=torch.float64)


NODES, KRONROD, GAUSS = _mirrored(_NODES, -1.0), _mirrored(_KRONROD, 1.0), torch.zeros(15, dtype=torch.float64)
GAUSS[1::2] = _mirrored(_GAUSS, 1.0)


class LineIntegral(NamedTuple):
    """value, an estimate of its error, and evaluations of the field, of each item (B,)."""

    value: Tensor
    error: Tensor
    nfe: Tensor


def line_integral(field, corners: list[Tensor], tol: float, max_nfe: int) -> LineIntegral:
    """`int field(x) . dx` along the line through the corners (B, *S), for `field (R, *S) -> (R, *S)`, in float64.

    Each item's own panel of the largest error is halved until the errors add up to `tol (1 + int |field . dx|)`, or the next
    halving would take more than max_nfe evaluations: the error then says what is left.  What an item gets depends on no other.
    Piessens et al. 1983, QUADPACK, sec. 3.4 (qag with qk15).
    """
    line = _Line(field, corners)
    batch, legs = corners[0].shape[0], len(corners) - 1
    edges = torch.linspace(0, legs, legs * PANELS + 1, dtype=torch.float64, device=corners[0].device)
    a, b = (e.expand(batch, -1).clone() for e in (edges[:-1], edges[1:]))
    rows = torch.arange(batch, device=a.device)
    found = line.panels(rows.repeat_interleave(a.shape[1]), a.flatten(), b.flatten()).view(3, *a.shape)
    nfe = torch.full((batch,), 15 * a.shape[1], dtype=torch.int64, device=a.device)
    while True:
        value, error, size = found.sum(2)
        active = ((error > tol * (1 + size)) & (nfe + 30 <= max_nfe)).nonzero().flatten()
        if not len(active):
            return LineIntegral(value, error, nfe.cpu())
        padded = active[torch.arange(-(-len(active) // PADDING) * PADDING, device=a.device).clamp(max=len(active) - 1)]
        worst = found[1, padded].argmax(1)
        low, high = a[padded, worst], b[padded, worst]
        middle = (low + high) / 2
        halves = line.panels(padded.repeat(2), torch.cat([low, middle]), torch.cat([middle, high])).view(3, 2, -1)
        halves, worst = halves[..., : len(active)], worst[: len(active)]
        a, b, found = (torch.cat([q, torch.zeros_like(q[..., :1])], -1) for q in (a, b, found))
        a[active, -1], b[active, -1] = middle[: len(active)], b[active, worst]
        b[active, worst] = middle[: len(active)]
        found[:, active, worst], found[:, active, -1] = halves[:, 0], halves[:, 1]
        nfe[active] += 30


class _Line:
    """The field along the line, by rows."""

    def __init__(self, field, corners: list[Tensor]):
        self.field, self.start = field, torch.stack(corners[:-1])
        self.step = torch.stack(corners[1:]) - self.start
        per_call = max(corners[0].shape[0], ENTRIES // corners[0][0].numel())
        self.chunk = -(-per_call // PADDING) * PADDING

    def panels(self, items: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Value, error and size (3, R) of the panels [a, b] (R,) of these items."""
        half, leg = (b - a) / 2, ((a + b) / 2).long()
        u = ((a + b) / 2)[:, None] + half[:, None] * NODES.to(a.device) - leg[:, None]
        ones = torch.ones_like(u, dtype=torch.int64)
        f = self._along(*(q.flatten() for q in (items[:, None] * ones, leg[:, None] * ones, u))).view_as(u)
        kronrod, gauss = KRONROD.to(a.device), GAUSS.to(a.device)
        value, size = half * (f @ kronrod), half * (f.abs() @ kronrod)
        # how far f is from its mean: in its units the difference of the two rules is taken to the power 3/2
        spread = half * ((f - (f @ kronrod / 2)[:, None]).abs() @ kronrod)
        gap = (half * (f @ (kronrod - gauss))).abs()
        error = torch.where(spread > 0, spread * (200 * gap / spread).pow(1.5).clamp(max=1), gap)
        return torch.stack([value, torch.maximum(error, _EPS.get(self.start.dtype, 2.0**-8) * size), size])

    def _along(self, items: Tensor, leg: Tensor, u: Tensor) -> Tensor:
        """field(x) . dx/du (R,) at the fraction u of a leg."""
        found = []
        for part in torch.arange(len(items), device=items.device).split(self.chunk):
            step = self.step[leg[part], items[part]]
            x = self.start[leg[part], items[part]] + u[part].to(step).view(-1, *[1] * (step.ndim - 1)) * step
            found.append((self.field(x).double() * step.double()).flatten(1).sum(1))
        return torch.cat(found)
