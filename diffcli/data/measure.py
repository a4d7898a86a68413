"""Settings that are measured on the training items: `schedule.sigma_max=auto`, `prediction.sigma_data=auto`."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffcli.data.base import Items
from diffcli.errors import UsageError

MOST = 10_000  # items of which every pair is compared; of more, this many spread evenly over the file are
CHUNK = 1000
WHOLE, PART = 2**28, 2**22  # numbers that are read at once; of more, in parts of so many


def largest_distance(x: Tensor) -> float:
    """The largest Euclidean distance between two items of x (N, *S): a noise of that size joins any two.

    Song & Ermon 2020, technique 1, arXiv:2006.09011.  Raises UsageError where all items are the same.
    """
    step = max(1, -(-len(x) // MOST))
    x = x[::step].flatten(1).double()
    if bool((x == x[0]).all()):
        raise UsageError("the data items are all the same, so sigma_max=auto has nothing to measure")
    x = x - x.mean(0)  # the expansion of the square then cancels least
    return max(torch.cdist(chunk, x).max().item() for chunk in x.split(CHUNK))


def standard_deviation(x: Tensor) -> float:
    """The standard deviation over all items and dimensions of x (N, *S).  Karras et al. 2022, table 1, arXiv:2206.00364."""
    if bool((x == x.flatten()[0]).all()):
        raise UsageError("the data do not vary, so sigma_data=auto has nothing to measure")
    return x.double().std(correction=0).item()


def deviation_by_parts(parts: Iterator[Tensor]) -> float:
    """The same of items that come in parts (n, *S), which need not fit into memory together.

    Sums of squares about each part's mean, put together.  Chan, Golub & LeVeque 1983.
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        x = part.double()
        n, own = x.numel(), x.mean().item()
        squares += ((x - own) ** 2).sum().item() + (own - mean) ** 2 * count * n / (count + n)
        mean += (own - mean) * n / (count + n)
        count += n
    if squares == 0:
        raise UsageError("the data do not vary, so sigma_data=auto has nothing to measure")
    return (squares / count) ** 0.5


def measured(name: str, items: Items, encode: Callable[[Tensor], Tensor]) -> float:
    """What `auto` stands for in the setting `name`, of items that `encode` takes to model space, read in parts where they are many.

    Raises UsageError where there is nothing to measure.
    """
    n = len(items)
    if name == "sigma_max":
        return largest_distance(encode(items.__getitems__(range(0, n, max(1, -(-n // MOST))))[0]))
    each = items.__getitems__([0])[0].numel()
    size = max(1, PART // each)
    if n * each <= WHOLE:
        return standard_deviation(encode(items.__getitems__(range(n))[0]))
    return deviation_by_parts(encode(items.__getitems__(range(i, min(i + size, n)))[0]) for i in range(0, n, size))


MEASURES = {"sigma_max": largest_distance, "sigma_data": standard_deviation}  # argument -> what auto stands for
