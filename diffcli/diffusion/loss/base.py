"""What every loss is."""

from abc import abstractmethod

from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser


class Loss(nn.Module):
    """`(denoiser, x0 (B, *S), draw, **cond) -> (B,)`, one value an item, summed over event dimensions.

    All randomness comes from `draw`, which is a function of (seed, step, rank, purpose).
    """

    @abstractmethod
    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor: ...
