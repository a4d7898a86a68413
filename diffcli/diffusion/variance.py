"""The variances that a reverse step may have: of samplers, and of the bounds that are trained."""

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import require

VARIANCES = ("small", "large", "learned")


def log_variances(log_sigma_s: Tensor, log_sigma_t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """log of the small and of the large variance of a step from t to s < t, `h = lam_s - lam_t`.

    small: `sigma_s^2 (1 - e^{-2h})`, of the posterior of x_s given x_t and x_0, right for data at one point;
    large: `sigma_{t|s}^2 = sigma_t^2 (1 - e^{-2h})`, right for N(0, I) under VP; DDPM's betatilde_i and beta_i.
    A learned one is `v log(large) + (1 - v) log(small)`.
    Ho et al. 2020, sec. 3.2, arXiv:2006.11239; Nichol & Dhariwal 2021, eq. 15, arXiv:2102.09672.
    """
    log_shrink = torch.log(-torch.expm1(-2 * h))
    return 2 * log_sigma_s + log_shrink, 2 * log_sigma_t + log_shrink


def check_variance(variance: str, denoiser: Denoiser) -> None:
    """Raise ValueError where a variance is to be read that the denoiser has not."""
    require(
        variance != "learned" or denoiser.outputs == 2,
        "variance=learned needs a model trained with prediction.outputs=2 and loss=vlb loss.variance=learned;"
        " variance=small or large goes with any model",
    )
