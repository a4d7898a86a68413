"""The last term of a variational bound: the probability of an item given its least noisy level."""

import math

import torch
from torch import Tensor

FAR = 1e5  # in standard deviations, the open end of an outer bin


def centres(x0: Tensor, levels: int | None) -> Tensor:
    """The centre `2 (k + 1/2)/N - 1` of the level that each value lies in, or the values themselves without levels."""
    if levels is None:
        return x0
    k = torch.floor((x0.double() + 1) * (levels / 2)).clamp(0, levels - 1)
    return ((2 * k + 1) / levels - 1).to(x0.dtype)


def decoder(x0: Tensor, miss: Tensor, log_std: Tensor, levels: int | None) -> Tensor:
    """-log of N(x0 - miss, std^2) at each value in nats; integrated over the value's bin where the data have levels.

    A bin is half a level each side, the outer ones open-ended: over all levels the probabilities sum to 1.
    Ho et al. 2020, eq. 13, arXiv:2006.11239.
    """
    z = miss * torch.exp(-log_std)
    if levels is None:
        return 0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)
    half = torch.exp(-log_std) / levels
    edge = 1 - 2 / levels  # beyond it lie the centres of the outer levels only
    low = torch.where(x0 < -edge, z.detach() - FAR, z - half)
    high = torch.where(x0 > edge, z.detach() + FAR, z + half)
    # the smaller tail: Phi(high) - Phi(low) = Phi(-low) - Phi(-high)
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top = torch.special.log_ndtr(high)
    return -top - torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))
