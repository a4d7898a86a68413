"""Settings that are measured on the training items: `schedule.sigma_max=auto`, `prediction.sigma_data=auto`."""

import torch
from torch import Tensor

from diffcli.errors import UsageError

MOST = 10_000  # items of which every pair is compared; of more, this many spread evenly over the file are
CHUNK = 1000


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


MEASURES = {"sigma_max": largest_distance, "sigma_data": standard_deviation}  # argument -> what auto stands for
