"""Log-density from a score alone."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, Rows
from diffcli.diffusion.endings import Ended, bad_rows, fine, first_row, unnamed
from diffcli.diffusion.likelihood.base import LogDensity, LogLikelihood
from diffcli.diffusion.likelihood.line_integral import LineIntegral, line_integral
from diffcli.diffusion.likelihood.on_grid import Normaliser, check_grid, data_box, level, normaliser
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.numeric import require

FIRST = 2 * 2 * 15  # evaluations of the first panels of two legs


class PathIntegral(LogDensity):
    """`log p(x) - log p(r) = int_0^1 s(r + u (x - r)) . (x - r) du`, of the score at one noise level.

    p is the density of `x0 + (sigma/alpha) eps` at t (t_min unless given), so that levels compare and nothing walks along the
    process: models of one level have it too.  r is `reference`, flattened, or the mean of the training items.  In d <= 2
    dimensions it is normalised on a grid of `grid` cells an axis over their range (0: not at all); else log p(r) counts as 0.
    Quadrature adapts to `tol (1 + int |s . dx|)` an item and ends at max_nfe evaluations, `solver_err` saying what is left.
    bent: the integral is found again along two legs, first through the first half of the coordinates; `path_gap` is the
    difference, 0 for the score of a density up to the quadrature.
    Raises ValueError for a value out of range, and in setup for a model whose field is no score, or without such a level; Ended
    for a score that is not finite.
    """

    needs_process = False

    def __init__(
        self,
        t: float | None = None,
        reference: list[float] | None = None,
        tol: float = 1e-5,
        max_nfe: int = 1000,
        bent: bool = True,
        grid: int = 128,
    ):
        require(0 < tol < 1, f"tol must lie between 0 and 1, got {tol}")
        require(max_nfe >= FIRST, f"max_nfe must be at least {FIRST}, got {max_nfe}")
        check_grid(grid)
        self.wanted, self.reference, self.tol, self.max_nfe, self.bent = t, reference, float(tol), max_nfe, bent
        self.grid = grid

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require(
            denoiser.posterior_mean, "the model is a free field (cnf, source), which has no score: take likelihood=ode"
        )
        self.t, d = level(denoiser, self.wanted), math.prod(data.shape)
        self.normalised = d <= 2 and self.grid > 0
        wrong = f"reference must have {d} numbers, got {len(self.reference or ())}"
        require(self.reference is None or len(self.reference) == d, wrong)
        items = data.items() if self.normalised or self.reference is None else None
        centre = items.flatten(1).double().mean(0) if self.reference is None else torch.tensor(self.reference).double()
        self.centre, self.found = centre.view(data.shape), None
        if self.normalised:
            self.box = data_box(items, torch.exp(-denoiser.sde.lam(self.t)).item())

    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        log_z = self.log_z(denoiser, x0, **cond) if self.normalised else Normaliser(0.0, 0.0, 0)
        straight = self._integral(denoiser, x0, [], **cond)
        nfe, gap = straight.nfe, torch.full_like(straight.value, math.nan)
        if self.bent and x0[0].numel() > 1:
            corner = self._start(x0).flatten(1).clone()
            half = -(-corner.shape[1] // 2)
            corner[:, :half] = x0.flatten(1)[:, :half]
            other = self._integral(denoiser, x0, [corner.view_as(x0)], **cond)
            nfe, gap = nfe + other.nfe, (other.value - straight.value).abs()
        return LogLikelihood(
            log_prob=straight.value - log_z.log_z,
            std_err=torch.zeros_like(gap),
            x1=x0,
            nfe=nfe,
            solver_err=straight.error + log_z.error,
            path_gap=gap,
        )

    def findings(self) -> dict[str, float]:
        return {} if self.found is None else self.found.findings()

    def log_z(self, denoiser: Denoiser, like: Tensor, **cond) -> Normaliser:
        """The normaliser, found once, in the dtype and on the device of `like`."""
        if self.found is None:

            def log_p(x):
                x = x.to(like).view(-1, *self.centre.shape)
                return self._integral(denoiser, x, [], **cond).value

            with unnamed("on the grid that normalises log p"):
                self.found = normaliser(log_p, self.box, self.grid)
        return self.found

    def _start(self, x0: Tensor) -> Tensor:
        return self.centre.to(x0).expand_as(x0)

    def _integral(self, denoiser: Denoiser, x0: Tensor, between: list[Tensor], **cond) -> LineIntegral:
        alpha, rows, asked = denoiser.sde.alpha(self.t).item(), Rows(denoiser), 0

        def field(x):
            nonlocal asked
            asked += x.shape[0]
            return denoiser.score(x, self.t, **cond)

        with torch.no_grad():
            corners = [alpha * x for x in (self._start(x0), *between, x0)]
            found = line_integral(field, corners, self.tol, self.max_nfe)
        # what one call of the denoiser costs at the network
        nfe = found.nfe * rows.each(asked)
        known = torch.stack([found.value, found.error], 1)
        if not fine(known):
            row = first_row(bad_rows(known))
            why = "the score is not finite on the line to an item,"
            raise Ended(why, at=self.t.item(), nfe=int(nfe[row]), row=row, who=type(self).__name__)
        return found._replace(nfe=nfe)
