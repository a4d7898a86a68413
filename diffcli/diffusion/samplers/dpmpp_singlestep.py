"""DPM-Solver++ of one step, in x0."""

import math

from diffcli.diffusion.numeric import combine
from diffcli.diffusion.samplers.dpm import Singlestep, check_r


class DPMpp2S(Singlestep):
    """With m at `lam_t + r h`: `u = (sigma_m/sigma_t) xt + alpha_m (1 - e^{-r h}) x0(xt, t)`,
    `x_s = (sigma_s/sigma_t) xt + alpha_s (1 - e^{-h}) ((1 - 1/(2 r)) x0(xt, t) + x0(u, m)/(2 r))`.

    Raises ValueError unless 0 < r <= 1.  Lu et al. 2022, alg. 1, arXiv:2211.01095.
    """

    order = 2
    evaluations = 2

    def __init__(self, r: float = 1 / 2):
        check_r(r=r)
        self.r = (float(r),)

    def step(self, denoiser, xt, i, plan, history, noise):
        sigma_t, sigma_s, alpha_s = plan.sigma[i], plan.sigma[i + 1], plan.alpha[i + 1]
        h = plan.lam[i + 1] - plan.lam[i]
        (r,), (m,) = self.r, plan.within
        x0 = denoiser(xt, plan.t[i])
        u = combine((m.sigma[i] / sigma_t, xt), (-m.alpha[i] * math.expm1(-r * h), x0))
        x0m, w, c = denoiser(u, m.t[i]), 0.5 / r, -alpha_s * math.expm1(-h)
        return combine((sigma_s / sigma_t, xt), (c * (1 - w), x0), (c * w, x0m))
