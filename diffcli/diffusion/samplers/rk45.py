"""Adaptive Dormand-Prince on the probability-flow ODE."""

from diffcli.diffusion.ode import MAX_NFE, Embedded, pf_ode
from diffcli.diffusion.samplers.adaptive import AdaptiveODE, hermite


class RK45(AdaptiveODE):
    """Dormand-Prince 5(4) in lam with a step size an item, to the local error `tol` (absolute and relative).

    It chooses its own steps; the grid gives the first and last time, and the times at which a callback looks.
    An item may take max_nfe evaluations of the denoiser.  Raises ValueError unless 0 < tol < 1 and max_nfe >= 1.
    Dormand & Prince 1980; Song et al. 2021, app. D.4, arXiv:2011.13456.
    """

    order = 5

    def __init__(self, tol: float = 1e-5, max_nfe: int = MAX_NFE):
        super().__init__(tol, max_nfe)

    def field(self, denoiser):
        return pf_ode(denoiser)

    def pair(self, denoiser, fn):
        return Embedded(fn)

    def path(self, denoiser, at, tau, end, x, new, first, last):
        return hermite(at, tau, end, x, new, first, last)
