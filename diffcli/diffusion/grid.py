"""Where the steps of a sampler fall: (sde, steps) -> decreasing times."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE


class Grid(ABC):
    """`steps + 1` strictly decreasing float64 times from sde.t_max to `max(sde.t_min, t_min)`.

    A grid writes `place`, which spaces them.  t_min is where sampling stops, apart from where training and likelihood do;
    by default the SDE's t_stop.  Raises ValueError if steps < 1 or t_min lies outside [0, sde.t_max).
    """

    def __init__(self, t_min: float | None = None):
        require(t_min is None or 0 <= t_min < 1, f"t_min must lie in [0, 1), got {t_min}")
        self.t_min = t_min

    @abstractmethod
    def place(self, sde: SDE, first: Tensor, last: Tensor, u: Tensor) -> Tensor:
        """The times at the fractions u in [0, 1] of the way from first to last."""

    def steps(self, sde: SDE) -> int | None:
        """How many steps it has of its own, None if it takes any number."""
        return None

    def ends(self, sde: SDE) -> Tensor:
        """The first and last time."""
        stop = sde.t_stop if self.t_min is None else self.t_min
        ends = torch.tensor([sde.t_max, max(sde.t_min, stop)], dtype=torch.float64)
        require(bool(ends[1] < ends[0]), f"t_min must lie below t_max = {sde.t_max}, got {stop}")
        return ends

    def __call__(self, sde: SDE, steps: int) -> Tensor:
        require(steps >= 1, f"steps must be at least 1, got {steps}")
        ends = self.ends(sde)
        times = self.place(sde, ends[0], ends[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        times[0], times[-1] = ends  # free of the round-off of time(lam(t))
        require(bool((times.diff() < 0).all()), f"{steps} steps are too many: two times coincide in float64")
        return times


class UniformT(Grid):
    """Uniform in t."""

    def place(self, sde, first, last, u):
        return first + (last - first) * u


class UniformLam(Grid):
    """Uniform in lam = log(alpha / sigma).  Lu et al. 2022, sec. 3.3, arXiv:2206.00927."""

    def place(self, sde, first, last, u):
        first, last = sde.lam(first), sde.lam(last)
        return sde.time(first + (last - first) * u)


class Karras(Grid):
    """Uniform in `(sigma/alpha)^(1/rho)`, rho = 7.  Karras et al. 2022, eq. 5, arXiv:2206.00364."""

    def __init__(self, t_min: float | None = None, rho: float = 7.0):
        super().__init__(t_min)
        require(rho > 0, f"rho must be above 0, got {rho}")
        self.rho = float(rho)

    def place(self, sde, first, last, u):
        first, last = torch.exp(-sde.lam(first) / self.rho), torch.exp(-sde.lam(last) / self.rho)
        return sde.time(-self.rho * torch.log(first + (last - first) * u))


def between_scales(lam: Tensor, small: float, large: float) -> Tensor:
    """`log((s + small)/(s + large))`, `s = e^-lam = sigma/alpha`; it falls with lam."""
    s = torch.exp(-lam)
    return torch.log((s + small) / (s + large))


class Scales(Grid):
    """Uniform in `log((s + small)/(s + large))`, s = sigma/alpha: in log s between the two scales, in s below, in 1/s above.

    Where the noise is larger than all that the data spans, or smaller than its finest structure, the model changes little, and
    steps may be wide.  Raises ValueError unless 0 < small < large.
    """

    def __init__(self, t_min: float | None = None, small: float = 0.07, large: float = 8.0):
        super().__init__(t_min)
        require(0 < small < large, f"small must lie between 0 and large, got {small} and {large}")
        self.small, self.large = float(small), float(large)

    def place(self, sde, first, last, u):
        first, last = (between_scales(sde.lam(t), self.small, self.large) for t in (first, last))
        tau = first + (last - first) * u
        return sde.time(torch.log(-torch.expm1(tau) / (self.large * torch.exp(tau) - self.small)))


class Levels(Grid):
    """The training levels of a discrete chain, from the largest to the smallest, each as it is; fewer steps take an even subset.

    Raises ValueError on an SDE without levels, and where more steps than they make are wanted.
    """

    def __init__(self, t_min: float = 0.0):
        super().__init__(t_min)

    def steps(self, sde):
        return len(self._times(sde)) - 1

    def place(self, sde, first, last, u):
        times = self._times(sde)
        most = len(times) - 1
        require(len(u) - 1 <= most, f"there are {most + 1} levels, so at most {most} steps, got {len(u) - 1}")
        return times[torch.round(u * most).long()]

    def ends(self, sde):
        return self._times(sde)[[0, -1]]

    def _times(self, sde: SDE) -> Tensor:
        """The levels within the sde's range and above t_min, decreasing."""
        fits = "grid=levels needs a schedule with levels, schedule=ddpm or schedule=ncsn, or take grid=uniform_lam"
        require(sde.times is not None, fits)
        times = sde.times.cpu().flip(0)
        times = times[(times >= max(sde.t_min, self.t_min)) & (times <= sde.t_max)]
        require(len(times) >= 2, f"fewer than two levels lie above t_min = {max(sde.t_min, self.t_min)}")
        return times
