"""Log-density of an energy model, without its normaliser where a grid cannot find it."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.endings import Ended, bad_rows, fine, first_row
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.likelihood.base import LogDensity, LogLikelihood
from diffcli.diffusion.likelihood.on_grid import Normaliser, check_grid, data_box, level, normaliser
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.numeric import require


class EnergyDensity(LogDensity):
    """`log p(x) = -E(x, t) - log Z` of a model whose score is `-grad E`, at one noise level, by one evaluation an item.

    p is the density of `x0 + (sigma/alpha) eps` at t (t_min unless given).  In d <= 2 dimensions Z is found on a grid of `grid`
    cells an axis over the range of the training items (0: not at all); else log Z counts as 0, and only differences between
    items at the same t mean anything.
    Raises ValueError for a value out of range, and in setup for a model without an energy, or without such a level; Ended for
    an energy that is not finite.
    """

    needs_process = False

    def __init__(self, t: float | None = None, grid: int = 256):
        check_grid(grid)
        self.wanted, self.grid = t, grid

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        fits = (
            "-E is there for models trained with prediction=energy, as they were trained: take likelihood=path, or ode"
        )
        require(isinstance(denoiser, Energy), fits)
        self.t, self.found = level(denoiser, self.wanted), None
        self.normalised = math.prod(data.shape) <= 2 and self.grid > 0
        if self.normalised:
            self.box = data_box(data.items(), torch.exp(-denoiser.sde.lam(self.t)).item())

    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        log_z = Normaliser(0.0, 0.0, 0)
        if self.normalised:
            if self.found is None:
                self.found = normaliser(
                    lambda x: self._minus_e(denoiser, x.to(x0).view(-1, *x0.shape[1:]), **cond), self.box, self.grid
                )
            log_z = self.found
        before = evaluations(denoiser)
        value = self._minus_e(denoiser, x0, **cond)
        nfe = torch.full((len(x0),), (evaluations(denoiser) - before) // len(x0))
        if not fine(value[:, None]):
            row, at = first_row(bad_rows(value[:, None])), self.t.item()
            raise Ended("the energy is not finite", at=at, nfe=int(nfe[row]), row=row, who=type(self).__name__)
        if not math.isfinite(log_z.log_z):
            raise Ended("the energy cannot be normalised on the grid", at=self.t.item(), nfe=log_z.points)
        error = torch.full_like(value, log_z.error)
        return LogLikelihood(value - log_z.log_z, torch.zeros_like(value), x0, nfe, solver_err=error)

    def findings(self) -> dict[str, float]:
        return {} if self.found is None else self.found.findings()

    def _minus_e(self, denoiser: Energy, x0: Tensor, **cond) -> Tensor:
        with torch.no_grad():
            return -denoiser.energy(denoiser.sde.alpha(self.t).item() * x0, self.t, **cond).double()
