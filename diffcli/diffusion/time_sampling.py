"""At which times a loss is evaluated: (sde, n, draw) -> t (n,) and its importance weight 1/q (n,)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE


class TimeSampler(ABC):
    """Draws n times on [sde.t_min, sde.t_max] with density q, and returns them with 1/q relative to the uniform density.

    A sampler writes `place`, which takes uniform numbers to times; they are stratified over the batch
    of all ranks, `u_i = (u + i/n) mod 1` with one u a batch, which lowers the variance of the loss.
    Kingma et al. 2021, app. I.1, arXiv:2107.00630.
    """

    needs_process = False  # whether it spreads the times over noise levels, of which a process has more than one

    @abstractmethod
    def place(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times at u in [0, 1), float64, and 1/q there."""

    def __call__(self, sde: SDE, n: int, draw) -> tuple[Tensor, Tensor]:
        return self.place(sde, draw.stratified("t", n))

    def setup(self, sde: SDE) -> None:
        """Raises ValueError for an SDE on which it draws nothing."""
        name = type(self).__name__.lower()
        require(sde.is_process or not self.needs_process, f"time={name} needs more than one noise level: time=uniform")


class Uniform(TimeSampler):
    """t uniform on [t_min, t_max]."""

    def place(self, sde, u):
        return sde.t_min + (sde.t_max - sde.t_min) * u, torch.ones_like(u)


def training_levels(sde: SDE, T: int, device: torch.device | str = "cpu") -> Tensor:
    """The levels of a chain, increasing, float64: the SDE's own `times`, or `t_max i/T` with i = 1 ... T; those from t_min on."""
    times = sde.t_max * (torch.arange(1, T + 1, dtype=torch.float64) / T) if sde.times is None else sde.times.double()
    return times[(times >= sde.t_min) & (times <= sde.t_max)].to(device)


class Levels(TimeSampler):
    """Each training level equally often; on a path without levels of its own these are `t_max i/T`.

    Its expectation is the plain average over the levels.  Raises ValueError unless T >= 1.  Ho et al. 2020, alg. 1,
    arXiv:2006.11239.
    """

    def __init__(self, T: int = 1000):
        require(T >= 1, f"T must be at least 1, got {T}")
        self.T = T
        self._there: dict[tuple, Tensor] = {}  # a training must not wait for a copy at every step

    def place(self, sde, u):
        key = sde, sde.t_min, u.device
        if key not in self._there:
            self._there = {key: training_levels(sde, self.T, u.device)}
        times = self._there[key]
        # u < 1, but u len may round to len
        return times[(u * len(times)).long().clamp(max=len(times) - 1)], torch.ones_like(u)


class LogNormal(TimeSampler):
    """`log(sigma/alpha) ~ N(p_mean, p_std^2)`, cut to the levels of the SDE.

    As in EDM the density is part of the weighting, so 1/q is not applied: it is 1.  Raises ValueError unless p_std > 0,
    and in `setup` where the SDE has no such levels.  Karras et al. 2022, sec. 5 and table 1, arXiv:2206.00364.
    """

    needs_process = True

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2):
        require(p_std > 0, f"p_std must be above 0, got {p_std}")
        self.p_mean, self.p_std = float(p_mean), float(p_std)

    def _ends(self, sde: SDE, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The cut in standard units."""
        lam = sde.lam(_ends_of(sde, device))
        low, high = (-lam - self.p_mean) / self.p_std
        return low, high

    def place(self, sde, u):
        low, high = self._ends(sde, u.device)
        below, above = torch.special.ndtr(low), torch.special.ndtr(high)
        z = torch.special.ndtri(below + u * (above - below)).clamp(low, high)
        t = sde.time(-(self.p_mean + self.p_std * z))
        return t.clamp(sde.t_min, sde.t_max), torch.ones_like(u)

    def setup(self, sde):
        super().setup(sde)
        low, high = self._ends(sde)
        require(
            bool(torch.special.ndtr(high) - torch.special.ndtr(low) > 1e-9),
            f"p_mean={self.p_mean:g} and p_std={self.p_std:g} leave no noise level of this SDE: log(sigma/alpha) goes from "
            f"{self._ratio(sde, sde.t_min):.3g} to {self._ratio(sde, sde.t_max):.3g}",
        )

    @staticmethod
    def _ratio(sde: SDE, t: float) -> float:
        return -sde.lam(torch.tensor(t, dtype=torch.float64)).item()


class Importance(TimeSampler):
    """Density proportional to g^2/sigma^2 = -2 dlam/dt, that is lam uniform; 1/q keeps the expectation.

    The likelihood-weighted loss then has the same weight at every draw.  Song et al. 2021b, sec. 5.1, arXiv:2101.09258.
    """

    needs_process = True

    def place(self, sde, u):
        first, last = sde.lam(_ends_of(sde, u.device))
        t = sde.time(first + (last - first) * u).clamp(sde.t_min, sde.t_max)
        return t, (last - first) / (sde.t_max - sde.t_min) / sde.dlam(t)


def _ends_of(sde: SDE, device: torch.device | str) -> Tensor:
    """t_min and t_max, float64, written on the device: for a copy it would have to be waited for."""
    return torch.stack([torch.full((), t, dtype=torch.float64, device=device) for t in (sde.t_min, sde.t_max)])


def time_samplers(T: int = 1000, p_mean: float = -1.2, p_std: float = 1.2) -> dict[str, TimeSampler]:
    """Every time sampler by its name on the command line, with these settings.  Raises ValueError for one out of range."""
    return {
        "uniform": Uniform(),
        "levels": Levels(T),
        "lognormal": LogNormal(p_mean, p_std),
        "importance": Importance(),
    }
