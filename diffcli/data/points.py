"""Point sets in the plane on which samplers and losses are usually shown."""

import math
from typing import Literal, final, get_args

import numpy as np
import torch

from diffcli.data.base import Data, TensorItems, check_count, concatenate, split_seed
from diffcli.data.transform import Identity
from diffcli.errors import UsageError

Name = Literal["moons", "circles", "checkerboard", "swiss_roll"]
LABELS = {"moons": ["upper", "lower"], "circles": ["outer", "inner"]}


@final
class Points(Data):
    """n points `(2,)` for each split, as independent draws, moved and scaled by constants to mean near 0, scale near 1.

    name: "moons" and "circles" have 2 classes, "checkerboard" and "swiss_roll" none (generators of scikit-learn; the
    checkerboard as in Grathwohl et al. 2019).  noise: standard deviation of the Gaussian noise, in the same units.
    Raises UsageError for another name, n < 1, noise < 0 or seed < 0.
    """

    units = "points"
    shape = (2,)

    def __init__(self, name: Name = "moons", n: int = 10000, noise: float = 0.05, seed: int = 0):
        super().__init__()
        if name not in get_args(Name):
            raise UsageError(f"there is no point set {name!r}", f"point sets are {', '.join(get_args(Name))}")
        check_count("n", n, 1)
        check_count("seed", seed, 0)
        if not 0 <= noise < math.inf:
            raise UsageError(f"data.noise={noise} is not a standard deviation")
        self.name, self.n, self.noise, self.seed = name, n, noise, seed
        self.class_names = LABELS.get(name, [])
        self.classes = len(self.class_names)
        self.transform = Identity()

    def _load(self, name: str) -> TensorItems:
        if name == "all":
            return concatenate([self.split(part) for part in ("train", "val", "test")])
        rng = np.random.RandomState(np.random.MT19937(split_seed(self.seed, name)))
        x, y = {"moons": _moons, "circles": _circles, "checkerboard": _checkerboard, "swiss_roll": _swiss_roll}[
            self.name
        ](self.n, rng)
        x = x + self.noise * rng.standard_normal(x.shape)
        return TensorItems(torch.from_numpy(x).float(), None if y is None else torch.from_numpy(y))


def _moons(n, rng):
    from sklearn.datasets import make_moons

    x, y = make_moons(n, random_state=rng)
    return (x - [0.5, 0.25]) * 1.5, y


def _circles(n, rng):
    from sklearn.datasets import make_circles

    x, y = make_circles(n, factor=0.5, random_state=rng)
    return 1.5 * x, y


def _checkerboard(n, rng):
    # The eight dark unit squares of a 4 x 4 board on [-2, 2]^2.
    column = rng.randint(0, 4, n)
    row = 2 * rng.randint(0, 2, n) + column % 2
    return np.stack([column, row], axis=1) - 2 + rng.random_sample((n, 2)), None


def _swiss_roll(n, rng):
    from sklearn.datasets import make_swiss_roll

    x, _ = make_swiss_roll(n, random_state=rng)
    return (x[:, [0, 2]] - [2.0, 0.3]) / 7, None
