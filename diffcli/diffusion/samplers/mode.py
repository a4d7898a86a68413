"""Mode seeking."""

from diffcli.diffusion.numeric import combine
from diffcli.diffusion.samplers.langevin import AtOneLevel


class Mode(AtOneLevel):
    """`x + gamma score`, `gamma = r sigma^2`: gradient ascent on log p_t at one noise level, to a stationary point of it.

    No step with r < 2 descends; r = 1 is `x = alpha x0_hat`, the mean shift.  It takes about
    `width^2 / (r sigma^2)` steps into a peak of that width: a larger t or a gamma of the peak's own scale is faster.
    Raises ValueError as `AtOneLevel`.
    Comaniciu & Meer 2002, "Mean shift: a robust approach toward feature space analysis".
    """

    usual_r = 1.0

    def step(self, denoiser, xt, i, plan, history, noise):
        gamma, score = self.ascent(denoiser, xt, plan)
        return combine((1.0, xt), (gamma, score))
