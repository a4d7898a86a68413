"""The noise levels at which a model is measured."""

import torch
from torch import Tensor

from diffcli.diffusion.sde import SDE

LEAST_LAM = -8.0  # where alpha = 0 lam is infinite; below this nothing of the data is left


class Levels:
    """Strata of equal width in lam between t_min and t_max, from the least noise on: `t` (K,) their middles, `lam` (K,).

    On a chain the training levels nearest to them, each once; of a model of one level that level.  `width` (K,) is what each
    stands for in an integral over lam.
    """

    def __init__(self, sde: SDE, count: int):
        self.sde, self.jitters = sde, sde.is_process and sde.times is None
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
        if not sde.is_process:
            self.t, self.edges = ends[:1], torch.zeros(2, dtype=torch.float64)
        else:
            first, last = sde.lam(ends).clamp(min=LEAST_LAM).tolist()
            self.edges = torch.linspace(first, last, count + 1, dtype=torch.float64)
            self.t = sde.time((self.edges[1:] + self.edges[:-1]) / 2).clamp(*ends.tolist())
            if sde.times is not None:
                own = sde.times.double().cpu()
                own = own[(own >= sde.t_min) & (own <= sde.t_max)].sort().values
                at = (sde.lam(own)[None] - sde.lam(self.t)[:, None]).abs().argmin(1).unique()
                self.t = own[at]
                middles = (sde.lam(self.t)[1:] + sde.lam(self.t)[:-1]) / 2
                self.edges = torch.cat([self.edges[:1], middles, self.edges[-1:]])
        self.lam, self.width = sde.lam(self.t), -self.edges.diff()

    def __len__(self) -> int:
        return len(self.t)

    def spread(self, k: int, n: int, generator: torch.Generator) -> Tensor:
        """n times within stratum k, one in each n-th of it in random order; on a chain the level itself."""
        if not self.jitters:
            return self.t[k].expand(n)
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        u = (torch.randperm(n, generator=generator) + u) / n
        t = self.sde.time(self.edges[k] + (self.edges[k + 1] - self.edges[k]) * u)
        return t.clamp(self.sde.t_min, self.sde.t_max)

    @property
    def noise(self) -> list[float]:
        """sigma/alpha."""
        return torch.exp(-self.lam).tolist()

    def ticks(self) -> list[tuple[float, str]]:
        """Where an axis in -lam says t."""
        some = torch.linspace(0, len(self) - 1, min(len(self), 6)).round().long().unique()
        return [(-self.lam[k].item(), f"{self.t[k].item():.2g}") for k in some]

    def columns(self) -> dict:
        """For a table."""
        return {"t": self.t, "lam": self.lam, "noise": self.noise}
