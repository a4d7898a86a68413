"""The times that were fitted to one model."""

from torch import Tensor

from diffcli.diffusion.grid import Grid
from diffcli.diffusion.numeric import require


class TunedGrid(Grid):
    """The fitted times `tables[steps]`, as they are.  Raises ValueError for another number of steps."""

    def __init__(self, tables: dict[int, Tensor] | None = None):
        super().__init__(None)
        self.tables = tables or {}

    def steps(self, sde):
        return max(self.tables, default=None)

    def place(self, sde, first, last, u):
        return self(sde, len(u) - 1)

    def __call__(self, sde, steps):
        require(bool(self.tables), "this model has not been tuned")
        there = ", ".join(map(str, sorted(self.tables)))
        require(steps in self.tables, f"the model was tuned for {there} steps, got {steps}")
        return self.tables[steps].clone()
