"""Randomness as a function of what it is for: nothing is stored, and nothing depends on batch size, workers or order."""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def key(*parts) -> int:
    """A 128-bit key of its arguments (integers and strings), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


class Draw:
    """The random numbers of one training step: a function of (seed, step, rank, purpose), drawn on `device`; `world` ranks."""

    def __init__(self, seed: int, step: int | str, rank: int = 0, device: torch.device | str = "cpu", world: int = 1):
        self.seed, self.step, self.device = int(seed), step, torch.device(device)
        self.rank, self.world = int(rank), world

    def generator(self, purpose: str, rank: int | None = None) -> torch.Generator:
        seed = key(self.seed, self.step, self.rank if rank is None else rank, purpose) % 2**63
        return torch.Generator(self.device).manual_seed(seed)

    def normal(self, purpose: str, shape, dtype=torch.float32) -> Tensor:
        """Standard normal noise."""
        return torch.randn(shape, dtype=dtype, device=self.device, generator=self.generator(purpose))

    def uniform(self, purpose: str, shape, dtype=torch.float32) -> Tensor:
        """Uniform on [0, 1)."""
        return torch.rand(shape, dtype=dtype, device=self.device, generator=self.generator(purpose))

    def stratified(self, purpose: str, n: int) -> Tensor:
        """`(u + i/(n world)) mod 1`, i = rank, rank + world, …, of n items, float64, with one u for all ranks."""
        u = torch.rand(1, dtype=torch.float64, device=self.device, generator=self.generator(purpose, rank=0))
        i = self.rank + self.world * torch.arange(n, dtype=torch.float64, device=self.device)
        return (u + i / (n * self.world)) % 1


class ItemNoise:
    """Noise of a batch of items, each a function of (seed, its index, counter): the same in every batch and on every device.

    Drawn in float64 on the CPU with NumPy's Philox generator, whose 128-bit key leaves no two items alike (a torch CPU
    generator uses 32 bits of its seed), then cast.
    """

    def __init__(self, seed: int, items, shape, dtype=torch.float32, device: torch.device | str = "cpu"):
        self.seed, self.items, self.shape = int(seed), [int(i) for i in items], tuple(shape)
        self.dtype, self.device = dtype, device

    def _stack(self, kind: str, counter, shape) -> np.ndarray:
        """Each item's own draw of this kind, one below the other, float64."""
        philox = np.random.Philox(key=0)
        draw, fresh = getattr(np.random.Generator(philox), kind), philox.state
        rows = np.empty((len(self.items), math.prod(shape)))
        for row, item in zip(rows, self.items, strict=True):
            words = divmod(key(self.seed, item, counter, kind), 2**64)[::-1]
            # a generator that has not drawn, under another key: a third of what a new one costs
            philox.state = fresh | {"state": fresh["state"] | {"key": np.array(words, np.uint64)}}
            draw(out=row)
        return rows.reshape(len(rows), *shape)

    def _tensor(self, a: np.ndarray) -> Tensor:
        x = torch.from_numpy(a).to(self.dtype)
        if torch.device(self.device).type == "cuda":  # from pinned memory, so that the walk does not wait for the copy
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)

    def __call__(self, counter: int | str) -> Tensor:
        """Standard normal noise (B, *S); counter 0 is the start, i + 1 belongs to step i."""
        return self._tensor(self._stack("standard_normal", counter, self.shape))

    def uniform(self, counter: int | str) -> Tensor:
        """Uniform on [0, 1), (B, *S); below 1 after the cast too."""
        return self._tensor(np.minimum(self._stack("random", counter, self.shape), 1 - 2.0**-24))

    def signs(self, counter: int | str, probes: int) -> Tensor:
        """Rademacher probes (B, probes, *S)."""
        return self._tensor(np.where(self._stack("random", counter, (probes, *self.shape)) < 0.5, -1.0, 1.0))
