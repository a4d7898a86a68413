"""How much of an average of the weights is kept at the n-th update, `average <- d_n average + (1 - d_n) weight`."""

import math
from abc import ABC, abstractmethod

WIDEST = 0.28  # of a power profile's relative width: at gamma = 0 it is 0.2887


class Profile(ABC):
    """n = 1, 2, … -> d_n in [0, 1]."""

    @abstractmethod
    def __call__(self, n: int) -> float: ...


class Constant(Profile):
    """`d_n = min(decay, (1 + n)/(10 + n))`: after its first steps an average over about 1/(1 - decay) updates.

    Raises ValueError unless 0 <= decay <= 1.
    """

    def __init__(self, decay: float):
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.decay = decay

    def __call__(self, n):
        return min(self.decay, (1 + n) / (10 + n))


class Power(Profile):
    """`d_n = (1 - 1/n)^(gamma + 1)`: weight n^gamma on the n-th, so that the average's width grows with the training.

    width: the standard deviation of the profile relative to the training's length, `sqrt(gamma + 1)/((gamma + 2) sqrt(gamma + 3))`.
    Raises ValueError unless 0 < width <= 0.28.  Karras et al. 2024, eq. 6 and 8, arXiv:2312.02696.
    """

    def __init__(self, width: float):
        if not 0 < width <= WIDEST:
            raise ValueError(f"width must lie in (0, {WIDEST}], got {width}")
        self.width, self.gamma = width, gamma_of(width)

    def __call__(self, n):
        return (1 - 1 / n) ** (self.gamma + 1)


def gamma_of(width: float) -> float:
    """The gamma >= 0 of a relative width, by bisection: the width falls with it."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        wide = math.sqrt(middle + 1) / ((middle + 2) * math.sqrt(middle + 3)) > width
        low, high = (middle, high) if wide else (low, middle)
    return low


def profile_of(profile: str, decay: float, width: float) -> Profile:
    """The profile of that name, constant or power, with its own of the two settings.  Raises ValueError for one out of range."""
    return {"constant": lambda: Constant(decay), "power": lambda: Power(width)}[profile]()
