"""The family of SDEs that share their marginals, solved exactly while x0_hat is constant."""

import math
from typing import NamedTuple

from diffcli.diffusion.numeric import require


class Damping(NamedTuple):
    """`x_s = keep (sigma_s/sigma_t) x_t + gain alpha_s x0 + fresh sigma_s z`."""

    keep: float
    gain: float
    fresh: float


def damping(eta: float, h: float) -> Damping:
    """The solution of `dx = (f x - (1 + eta^2)/2 g^2 score) dt + eta g dw` over h in lam, with x0_hat constant.

    `keep = e^{-eta^2 h}`, `gain = 1 - e^{-(1 + eta^2) h}`, `fresh = sqrt(1 - e^{-2 eta^2 h})`.
    Xue et al. 2023, prop. 4.1, arXiv:2309.05019 (its tau is eta); Lu et al. 2022, eq. 14, arXiv:2211.01095 (eta = 1).
    """
    k = eta**2
    return Damping(math.exp(-k * h), -math.expm1(-(1 + k) * h), math.sqrt(-math.expm1(-2 * k * h)))


def check_eta(eta: float) -> float:
    """eta as a float.  Raises ValueError unless it is a number that is not negative."""
    require(0 <= eta < math.inf, f"eta must be at least 0, got {eta}")
    return float(eta)
