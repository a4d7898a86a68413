"""The end of the ODE and all the way there, by many small steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.samplers.adams_moulton import AdamsMoulton
from diffcli.diffusion.samplers.phi import lagrange_weights
from diffcli.diffusion.sde import SDE


def refined(sde: SDE, times: Tensor, least: int) -> Tensor:
    """Every interval of times cut into the same number of pieces, even in lam, at least so many pieces in all."""
    pieces = -(-least // (len(times) - 1))
    lam = sde.lam(times)
    u = torch.arange(pieces, dtype=torch.float64) / pieces
    fine = sde.time(torch.cat([(lam[:-1, None] + lam.diff()[:, None] * u).flatten(), lam[-1:]]))
    fine[::pieces] = times
    return fine


class Reference:
    """x (B, *S) at each of fine times, and between them by cubics in lam."""

    def __init__(self, bound: Callable[[range], Denoiser], starts: Tensor, times: Tensor, batch: int):
        self.sde, self.states = bound(range(1)).sde, [starts]
        self.states += [torch.empty_like(starts) for _ in times[1:]]
        self.lam = self.sde.lam(times)
        sampler = AdamsMoulton()
        for i in range(0, len(starts), batch):
            rows = range(i, min(i + batch, len(starts)))
            sampler.walk(bound(rows), starts[i : rows.stop], times, None, lambda k, x, r=rows: self._keep(k, x, r))

    def _keep(self, k: int, x: Tensor, rows: range) -> None:
        self.states[k][rows.start : rows.stop] = x

    @property
    def end(self) -> Tensor:
        """x at the last time."""
        return self.states[-1]

    def at(self, time: Tensor) -> Tensor:
        """x at a time."""
        lam, last = self.sde.lam(time), len(self.lam) - 1
        i = int(torch.searchsorted(self.lam, lam).clamp(1, last))
        first = min(max(i - 2, 0), max(last - 3, 0))
        near = range(first, min(first + 4, last + 1))
        # as weights of the value: the moments of the nodes are the powers of the place itself
        nodes = ((self.lam[near.start : near.stop] - lam) / (self.lam[i] - self.lam[i - 1])).tolist()
        w = lagrange_weights(nodes, [1.0] + [0.0] * (len(nodes) - 1))
        return sum(c * self.states[k] for c, k in zip(w, near, strict=True))
