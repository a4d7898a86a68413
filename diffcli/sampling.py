"""Many samples, batch by batch, such that sample i is a function of the seed and i alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from diffcli.data.base import Items
from diffcli.data.transform import Transform
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.endings import naming
from diffcli.diffusion.guidance import Conditioned
from diffcli.diffusion.samplers import Sampler, Samples, sample
from diffcli.diffusion.samplers.base import straight
from diffcli.diffusion.sde import SDE
from diffcli.randomness import ItemNoise

PADDING = 16  # a kernel's last bits may depend on the batch size, but not between multiples of this


def padded(n: int, batch_size: int) -> int:
    """The size of the batches of n items: `batch_size`, or all of them, up to a multiple of PADDING."""
    return -(-min(batch_size, n) // PADDING) * PADDING


def batches(n: int, batch_size: int, first: int = 0, of: int = 0) -> Iterator[range]:
    """The items first ... first + n - 1 in batches of one size, a multiple of PADDING, so that the last may go beyond them.

    of: of how many items they are a part, whose batches have that size too.
    """
    size = padded(max(n, of), batch_size)
    for begin in range(first, first + n, size):
        yield range(begin, begin + size)


class Conditions:
    """What sample i is given, a function of i alone: row `(i // each) mod N` of each table (N, ...), by the keyword's name."""

    def __init__(self, each: int = 1, **tables: Tensor):
        self.tables = {name: (table, each) for name, table in tables.items()}

    def __or__(self, other: "Conditions") -> "Conditions":
        """Both of them, each with its own `each`."""
        both = Conditions()
        both.tables = self.tables | other.tables
        return both

    def __call__(self, items: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """The keywords for a batch of items, a row each; integers keep their type."""
        found = {}
        for name, (table, each) in self.tables.items():
            rows = table[[i // each % len(table) for i in items]]
            found[name] = rows.to(device=device, dtype=dtype if rows.is_floating_point() else None)
        return found


class Starts:
    """Where sample i starts, a function of i alone: at item `i mod N` of a second data set, or of the user's own.

    items: in source units, which `transform` takes to model space.
    """

    def __init__(self, items: Items, transform: Transform, sde: SDE):
        self.items, self.transform, self.sde = items, transform, sde

    def __len__(self) -> int:
        return len(self.items)

    def raw(self, indices: Sequence[int]) -> Tensor:
        """The items in source units, (B, *S)."""
        return self.items.__getitems__([i % len(self.items) for i in indices])[0]

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """x at t_max, (B, *S)."""
        return self.sde.sample_prior(self.transform.encode(self.raw(indices)))


def draw_samples(
    denoiser: Denoiser,
    sampler: Sampler,
    times: Tensor,
    shape,
    n: int,
    seed: int,
    batch_size: int = 64,
    start: Tensor | Starts | None = None,
    last: str | None = None,
    callback: Callable[[int, int, Tensor], None] | None = None,
    see: Callable[[int, Tensor, Tensor], None] | None = None,
    first: int = 0,
    of: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = straight,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    given: Conditions | None = None,
) -> Iterator[Samples]:
    """Samples first ... first + n - 1 in model space, batch by batch.

    `start` is x at times[0], (n, *shape) or a function of the items, by default its sampler's own.  callback(first item, i, x)
    is called with x (B, *shape) at times[i], i = 0 before the first step and then after each one; see(first item, x0_hat, t) at
    each evaluation; progress wraps the steps of each batch.  given: what the samples are conditioned on.
    of: where these n are a part of more samples, how many those are: the batches are then as large as of all of them.
    Raises Ended, with the number of the sample, where the sampler cannot go on.
    """
    for items in batches(n, batch_size, first, of):
        # what fills up the last batch is its last sample again: one that nobody asked for could fail, and end the run
        rows = [min(i, first + n - 1) for i in items]
        noise = ItemNoise(seed, rows, shape, dtype, device)
        x = _begin(start, rows, first)
        x = sampler.begin(denoiser.sde, noise) if x is None else x.to(dtype).to(device)
        keep, begin = min(len(items), first + n - items.start), items.start
        watch = look = None
        if callback is not None:
            watch = partial(_shown, callback, begin, keep)
            watch(0, x)
        if see is not None:
            look = partial(_seen, see, begin, keep)
        bound = denoiser if given is None else Conditioned(denoiser, **given(rows, dtype, device))
        with naming(rows, "sample"):
            x, nfe = sample(bound, sampler, x, times, noise, last, watch, look, progress)
        yield Samples(x[:keep], nfe[:keep])


def _begin(start: Tensor | Starts | None, items: Sequence[int], first: int) -> Tensor | None:
    if isinstance(start, Starts):
        return start(items)
    return None if start is None else start[[i - first for i in items]]


def _shown(callback, first: int, keep: int, i: int, x: Tensor) -> None:
    callback(first, i, x[:keep])


def _seen(see, first: int, keep: int, x0: Tensor, t: Tensor) -> None:
    see(first, x0[:keep], t[:keep] if t.ndim else t)
