"""What the laws are measured on: every SDE on every schedule, and Gaussian mixtures, whose truth is known."""

import torch
from torch import Tensor

from diffcli.diffusion import schedule, sde
from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.schedule import Schedule
from diffcli.diffusion.sde import OU, SDE, Drift, Path, Scheduled

TIMES = (0.0505, 0.2005, 0.5005, 0.9005)  # between the levels of a table, where f and g jump


def sdes() -> dict[str, SDE]:
    """Every SDE that follows a schedule on every schedule, and those with a clock of their own, by name."""
    follow = [c for c in map(vars(sde).get, sde.__all__) if issubclass(c, Scheduled) and c is not Scheduled]
    schedules = [
        c for c in map(vars(schedule).get, schedule.__all__) if c not in (Schedule, schedule.Table)
    ]  # those two take what a schedule is
    found = {f"{a.__name__}, {b.__name__}": a(b()) for a in follow for b in schedules}
    return found | {
        "OU": OU(),
        "Path": Path("cos(pi/2*t)", "sin(pi/2*t)"),
        "Drift": Drift("-1 - 8*t", "1 + 2*t", 0.0),
    }


def usual() -> dict[str, SDE]:
    """A few of them, of all kinds, for what takes longer."""
    names = ("VP, Linear", "SubVP, Linear", "VE, Geometric", "Flow, Logit", "OU", "Path")
    found = sdes()
    return {name: found[name] for name in names}


def times(sde: SDE, device: torch.device | str = "cpu") -> Tensor:
    """Some times of its range, float64."""
    t = torch.tensor(TIMES, dtype=torch.float64, device=device)
    return t[(t > sde.t_min) & (t < sde.t_max)]


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, float64 on the CPU."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(d: int, device: torch.device | str = "cpu") -> GaussianMixture:
    """Three components with full covariances in d dimensions."""
    a = normal(7, 3, d, d)
    covs = 0.2 * a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return GaussianMixture(weights, normal(8, 3, d), covs).to(device)


def gaussian(d: int, device: torch.device | str = "cpu") -> GaussianMixture:
    """One Gaussian with a mean and a full covariance."""
    of = mixture(d)
    return GaussianMixture(torch.ones(1), of.means[:1], of.covs[:1]).to(device)


def at(sde: SDE, of: GaussianMixture, t: Tensor, n: int = 6) -> tuple[Tensor, Tensor]:
    """n points of the mixture noised to each of the times (T,), (n T, d), and their times (n T,)."""
    t = t.repeat_interleave(n)
    x0, _ = of.cpu().sample(len(t), torch.Generator().manual_seed(1))
    of.to(t.device)
    return sde.perturb(x0.to(t.device), t, normal(2, *x0.shape).to(t.device)), t
