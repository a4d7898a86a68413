"""What it costs that a path ends at t_min, with some noise left."""

from torch import Tensor

from diffcli.diffusion.likelihood.field import Reading
from diffcli.diffusion.numeric import match


def truncation(reading: Reading, sde) -> Tensor:
    """Estimates of `log p_t(x) - log p_0(x)` in nats, one a column (B, columns), from the model at (x, t) alone:

        -log(alpha) (d + x.s) + 1/2 sigma^2 (div s + ||s||^2),   s = grad log p_t,

    which is what the continuity equation moves log p by between the data (alpha = 1, sigma = 0) and t, to first order in
    log(alpha) and sigma^2.  Where it is not small against a nat, the model's law has structure finer than sigma.
    """
    alpha, sigma, eps = sde.alpha(reading.t), sde.sigma(reading.t), reading.eps(sde)
    along = -(reading.x.double() * eps).flatten(1).sum(1, keepdim=True)  # sigma x.s
    like = reading.div
    shrink = -match(alpha.log(), like) * (reading.x[0].numel() + along / match(sigma, like))
    blur = 0.5 * (eps.square().flatten(1).sum(1, keepdim=True) - match(sigma, like) * reading.div_eps(sde))
    return shrink + blur
