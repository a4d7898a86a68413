"""Many samples, batch by batch, such that sample i is a function of the seed and i alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.samplers import Sampler, Samples, sample
from diffcli.randomness import ItemNoise

PADDING = 16  # a kernel's last bits may depend on the batch size, but not between multiples of this


def batches(n: int, batch_size: int) -> Iterator[range]:
    """The items of each batch; every batch has the same size, a multiple of PADDING, so the last may go beyond n."""
    size = -(-min(batch_size, n) // PADDING) * PADDING
    for first in range(0, n, size):
        yield range(first, first + size)


def draw_samples(
    denoiser: Denoiser,
    sampler: Sampler,
    times: Tensor,
    shape,
    n: int,
    seed: int,
    batch_size: int = 64,
    start: Tensor | None = None,
    last: str | None = None,
    callback=None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Iterator[Samples]:
    """Samples 0 ... n - 1 in model space, batch by batch; `start` (n, *shape) is x at times[0], by default the prior's.

    callback(first item, i, x) is called after each step with x (B, *shape) at times[i].
    """
    for items in batches(n, batch_size):
        noise = ItemNoise(seed, items, shape, dtype, device)
        x = (
            denoiser.sde.sample_prior(noise(0))
            if start is None
            else start[[min(i, n - 1) for i in items]].to(dtype).to(device)
        )
        keep = min(len(items), n - items.start)
        watch = None if callback is None else lambda i, x, keep=keep, items=items: callback(items.start, i, x[:keep])
        x, nfe = sample(denoiser, sampler, x, times, noise, last, watch)
        yield Samples(x[:keep], nfe[:keep])
