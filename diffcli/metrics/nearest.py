"""The nearest items of a data set to each of many queries, of any number of items in bounded memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffcli.errors import NumericalError, UsageError

ITEMS, ROWS = 4096, 4096  # items and queries of one block of distances: 64 MB in float32
HELD = 2**26  # numbers of a block of items, 0.5 GB; large images are fewer
PAIRS = 2**23  # entries of the differences held at once, 64 MB
SPARE = 4  # candidates of a block beyond k that are measured again
LOW = 16  # coordinates up to which the search itself is in float64: it costs little there


class Nearest:
    """Finds the k nearest items to each query by Euclidean distance: `(distances, indices)`, each `(n, k)`, nearest first.

    items: a data set, or a tensor `(N, *S)`; read in blocks, in order, once for each call, so that memory does not grow
    with N.  embed: maps a block of items to the space where distances are taken, None leaves them as they are.
    The search multiplies matrices in float32, and what it finds is measured again in float64, so the distances are those
    of the items named; of items nearer to each other than 1e-5 of their own size another may be named in their stead.
    Raises UsageError for k outside 1 … N.
    """

    def __init__(self, items, k: int = 1, embed: Callable[[Tensor], Tensor] | None = None):
        if not 1 <= k <= len(items):
            raise UsageError(f"{len(items)} items have no {k} nearest ones")
        self.items, self.k, self.embed = items, k, embed

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, queries: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Search for queries `(n, *S)`, already embedded; distances float64, indices int64.

        skip: an item `(n,)` for each query that it shall not find, its own; needs k < N.
        Raises UsageError for queries of another size than the items, NumericalError for a non-finite query or item.
        """
        if skip is not None and self.k >= len(self):
            raise UsageError(f"{len(self)} items have no {self.k} nearest others")
        q = _flat(queries, "query", 0)
        best = q.new_full((len(q), self.k), torch.inf)
        index = torch.full(best.shape, -1, device=q.device)
        start, centre, scale = 0, None, 1.0
        for block in self._blocks(max(1, min(ITEMS, HELD // q.shape[1]))):
            items = _flat(block.to(q.device), "item", start)
            if items.shape[1] != q.shape[1]:
                raise UsageError(f"queries of {q.shape[1]} coordinates have no distance to items of {items.shape[1]}")
            if centre is None:
                # |a|^2 + |b|^2 - 2 ab loses fewer digits near the origin, and its squares stay within float32
                centre = items.mean(0)
                scale = (items - centre).abs().max().item() or 1.0
                z = self._coarse(q, centre, scale)
            y = self._coarse(items, centre, scale)
            for first in range(0, len(q), ROWS):
                part = slice(first, first + ROWS)
                own = None if skip is None else skip[part].to(q.device) - start
                self._search(q[part], items, z[part], y, own, best[part], index[part], start, scale)
            start += len(items)
        return best, index

    def _blocks(self, size: int) -> Iterator[Tensor]:
        for first in range(0, len(self), size):
            last = min(first + size, len(self))
            tensor = isinstance(self.items, Tensor)
            block = self.items[first:last] if tensor else self.items.__getitems__(range(first, last))[0]
            yield block if self.embed is None else self.embed(block)

    @staticmethod
    def _coarse(x: Tensor, centre: Tensor, scale: float) -> Tensor:
        return ((x - centre) / scale).to(torch.float64 if x.shape[1] <= LOW else torch.float32)

    def _search(self, q, items, z, y, own, best, index, start, scale) -> None:
        """Merge what one block of items holds into the best and the index of one block of queries."""
        norms, sizes = y.square().sum(1), z.square().sum(1)
        square = torch.addmm(norms, z, y.T, alpha=-2).add_(sizes[:, None])
        if own is not None:
            rows = ((own >= 0) & (own < len(items))).nonzero()[:, 0]
            square[rows, own[rows]] = torch.inf
        found = square.topk(min(self.k + SPARE, len(items)), largest=False)
        candidate, order = found.indices.sort(1)  # by index, so that of equals the first is kept
        slack = (1e-5 if z.dtype == torch.float32 else 1e-13) * (sizes + norms.max())
        limit = (best[:, -1:] / scale).square() + slack[:, None]
        near = found.values.gather(1, order) <= limit.to(found.values.dtype)
        distance = torch.full(candidate.shape, torch.inf, dtype=torch.float64, device=q.device)
        row, column = near.nonzero(as_tuple=True)
        for r, c in zip(*(a.split(max(1, PAIRS // q.shape[1])) for a in (row, column)), strict=True):
            distance[r, c] = (q[r] - items[candidate[r, c]]).square_().sum(1).sqrt()
        if own is not None:
            distance[candidate == own[:, None]] = torch.inf
        both, named = torch.cat([best, distance], 1), torch.cat([index, candidate + start], 1)
        both, order = both.sort(dim=1, stable=True)
        best.copy_(both[:, : self.k])
        index.copy_(named.gather(1, order[:, : self.k]))


def _flat(x: Tensor, what: str, start: int) -> Tensor:
    x = x.reshape(len(x), -1).double()
    bad = ~x.isfinite().all(dim=1)
    if bad.any():
        raise NumericalError(f"{what} {start + int(bad.nonzero()[0])} is not finite")
    return x
