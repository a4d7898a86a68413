"""Where a training's batches come from: items that stay on the device, or processes that read ahead of the steps."""

import atexit
import multiprocessing
import signal
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from diffcli.data.base import Items
from diffcli.errors import DiffcliError
from diffcli.signals import SIGNALS
from diffcli.training.data import BatchOrder, Readable, as_is
from diffcli.training.transfer import sent

AHEAD = 4  # batches that each process which reads has ready


class Batches:
    """Endless batches (x (B, *S), y (B, …)) in source units and in the order of `order`; one that cannot be read is a DiffcliError.

    Items that are in memory, and items of 8 bits once they have been read, stay on `device`, up to `limit` bytes of them: a batch
    is then a gather there.  On the CPU those in memory stay where they are, whatever their size, unless limit = 0.  Others are
    read by `workers` processes ahead of the steps, into pinned memory where the device is a GPU.
    """

    def __init__(
        self, items: Items, order: BatchOrder, device: torch.device | str = "cpu", workers: int = 0, limit: float = 0
    ):
        self.items, self.order, self.device, self.workers = items, order, torch.device(device), workers
        held = items.held()
        at_once = self.device.type == "cpu" and limit > 0
        here = held is not None and (at_once or sum(a.nbytes for a in held) <= limit)
        self.held = tuple(a.to(self.device) for a in held) if here else None
        self.resident = here or (held is None and _bytes_of_pictures(items) <= limit)
        self._waited, self._since = 0.0, time.perf_counter()

    def __iter__(self) -> Iterator:
        batches = self._kept() if self.resident else iter(self._loader(self.order))
        self._waited, self._since = 0.0, time.perf_counter()
        while True:
            begun = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - begun
            yield batch

    def waited(self) -> float:
        """The share of the time since the last call in which the training waited for its next batch."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share

    def _kept(self) -> Iterator:
        """Batches of items that stay on the device, each read when it is first asked for, and never again."""
        store, unread = self.held or (), Unread(self.order)
        reading = iter(()) if store else iter(self._loader(unread))
        for index, new in ((index, []) for index in self.order) if store else unread.pairs():
            if new:
                found = next(reading)
                if isinstance(found, DiffcliError):
                    yield found  # which ends the training
                    continue
                if not store:
                    n = len(self.items)
                    store = tuple(torch.empty((n, *a.shape[1:]), dtype=a.dtype, device=self.device) for a in found)
                at = sent(torch.tensor(new), self.device)
                for kept, a in zip(store, found, strict=True):
                    kept[at] = sent(a, self.device)
            at = sent(torch.tensor(index), self.device)
            yield tuple(kept[at] for kept in store)

    def _loader(self, batches: Sampler) -> DataLoader:
        if self.workers:
            atexit.register(_end_workers)
        return DataLoader(
            Readable(self.items),
            batch_sampler=batches,
            collate_fn=as_is,
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_deaf,
        )


class Unread(Sampler):
    """The items of each batch that no batch before it had, of the batches that have any; ends when all items have come."""

    def __init__(self, order: BatchOrder):
        self.order = order

    def __iter__(self) -> Iterator[list[int]]:
        left = self.order.n
        for _, new in self.pairs():
            if new:
                left -= len(new)
                yield new
            if not left:
                return

    def pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        """Each batch, and what of it is new."""
        known = bytearray(self.order.n)
        for index in self.order:
            new = [i for i in dict.fromkeys(index) if not known[i]]
            for i in new:
                known[i] = 1
            yield index, new


def _bytes_of_pictures(items: Items) -> float:
    """How many bytes all items take, infinite where they are not of 8 bits or the first of them cannot be read."""
    try:
        x, y = items.__getitems__([0])
    except DiffcliError:
        return float("inf")  # its batch will say so
    return len(items) * (x.nbytes + y.nbytes) if x.dtype == torch.uint8 else float("inf")


def _deaf(_) -> None:
    """Let the main process alone answer signals: a loader that died of Ctrl-C would take the run with it."""
    for s in SIGNALS:
        signal.signal(s, signal.SIG_IGN)


def _end_workers() -> None:
    """End the workers of a loader that is still there when the program ends: Python's own SIGTERM, for which it waits, they do not
    hear."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
