"""Mode seeking."""

from typing import Literal

from diffcli.diffusion.numeric import combine
from diffcli.diffusion.samplers.langevin import AtOneLevel


class Mode(AtOneLevel):
    """`x + gamma score`, `gamma = r sigma^2`: gradient ascent on log p_t at one noise level, to a stationary point of it.

    No step with r < 2 descends; r = 1 is `x = alpha x0_hat`, the mean shift.  It takes about
    `width^2 / (r sigma^2)` steps into a peak of that width: a larger t or a gamma of the peak's own scale is faster.
    Raises ValueError as `AtOneLevel`.
    Comaniciu & Meer 2002, "Mean shift: a robust approach toward feature space analysis".
    """

    def __init__(
        self,
        r: float = 1.0,
        gamma: float | None = None,
        t: float | None = None,
        start: Literal["prior", "uniform"] = "prior",
        low: float = -1.0,
        high: float = 1.0,
    ):
        super().__init__(r, gamma, t, start, low, high)

    def step(self, denoiser, xt, i, plan, history, noise):
        gamma, score = self.ascent(denoiser, xt, plan)
        return combine((1.0, xt), (gamma, score))
