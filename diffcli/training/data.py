"""Batches in an order that is a function of (seed, position, rank): nothing to save, exact resume, any number of workers."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from diffcli.data.base import Items
from diffcli.errors import DiffcliError
from diffcli.randomness import key


class BatchOrder(Sampler):
    """The indices of one rank's batches, without end, where `start` items have been taken by all of them before.

    The items form one stream of random permutations, epoch after epoch; a global batch takes the next world * batch_size of
    it, and rank r its r-th part, so no item is dropped, and batches may be larger than the data set.  What was taken before
    may have been in batches of another size, by other ranks: every item still comes once an epoch.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.n, self.batch_size, self.seed, self.rank, self.world, self.start = n, batch_size, seed, rank, world, start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order, batch = -1, [], 0
        while True:
            position = self.start + (batch * self.world + self.rank) * self.batch_size
            indices: list[int] = []
            while len(indices) < self.batch_size:
                e, k = divmod(position + len(indices), self.n)
                if e != epoch:
                    epoch, order = e, self._permutation(e)
                indices += order[k : k + self.batch_size - len(indices)]
            yield indices
            batch += 1

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(key(self.seed, "order", epoch) % 2**63)
        return torch.randperm(self.n, generator=generator).tolist()


class Readable(Dataset):
    """Items, or the sentence of why a batch of them cannot be read, in its place: from a process that loads data an exception
    would come as its trace."""

    def __init__(self, items: Items):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices):
        try:
            return self.items.__getitems__(indices)
        except DiffcliError as error:
            return error


def readable(batch):
    """The batch.  Raises DiffcliError where it could not be read: something was started, so that it is no UsageError."""
    if isinstance(batch, DiffcliError):
        raise DiffcliError(batch.message, batch.hint) from batch
    return batch


def val_loader(items: Items, batch_size: int, limit: int) -> DataLoader:
    """The first `limit` items once, in order."""
    n = min(limit, len(items))
    batches = [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]
    return DataLoader(Readable(items), batch_sampler=batches, collate_fn=as_is)


def as_is(batch):
    """A batch of `Items`, which gives whole ones."""
    return batch
