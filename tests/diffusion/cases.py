"""What the tests of the mathematics iterate over, and the models whose truth is known."""

import pytest
import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.prediction import X0, Eps, Score, V, Velocity
from diffcli.diffusion.schedule import (
    DDPM,
    EDM,
    NCSN,
    Constant,
    Cosine,
    Geometric,
    Linear,
    Logit,
    Quadratic,
    Sigmoid,
)
from diffcli.diffusion.sde import OU, SDE, VE, VP, Drift, Flow, Path, SubVP

# a new class is tested from the day it is listed here
SDES = {"vp": VP, "subvp": SubVP, "ve": VE, "flow": Flow}  # that follow a schedule
SCHEDULES = {
    "linear": Linear,
    "cosine": Cosine,
    "geometric": Geometric,
    "logit": Logit,
    "constant": Constant,
    "quadratic": Quadratic,
    "sigmoid": Sigmoid,
    "edm": EDM,
    "ddpm": DDPM,
    "ncsn": NCSN,
}
OWN = {  # with a clock of their own: t_min -> SDE
    "ou": lambda t_min=None: OU(t_min=t_min),
    "path": lambda t_min=None: Path("cos(pi/2*t)", "sin(pi/2*t)", t_min),
    "drift": lambda t_min=None: Drift("-1 - 8*t", "1 + 2*t", 0.0, t_min),
}
PREDICTIONS = {"eps": Eps, "x0": X0, "v": V, "score": Score, "velocity": Velocity}


def build(sde: str, schedule: str | None = None, t_min: float | None = None) -> SDE:
    return OWN[sde](t_min) if schedule is None else SDES[sde](SCHEDULES[schedule](), t_min)


def paths(pairs, t_min: float | None = None):
    """Parametrises a test over SDEs, each built once."""
    return pytest.mark.parametrize("sde", [pytest.param(build(*p, t_min=t_min), id="-".join(p)) for p in pairs])


# every SDE and every schedule is met; what is quick goes over ALL
PATHS = [
    ("vp", "linear"),
    ("vp", "cosine"),
    ("vp", "quadratic"),
    ("vp", "ddpm"),
    ("subvp", "linear"),
    ("subvp", "constant"),
    ("subvp", "geometric"),
    ("vp", "logit"),
    ("ve", "geometric"),
    ("ve", "edm"),
    ("ve", "cosine"),
    ("ve", "ncsn"),
    ("flow", "logit"),
    ("flow", "sigmoid"),
    ("flow", "edm"),
    ("ou",),
    ("path",),
    ("drift",),
]
ALL = [(s, c) for s in SDES for c in SCHEDULES] + [(s,) for s in OWN]
every_path, all_paths = paths(PATHS), paths(ALL)
every_schedule = pytest.mark.parametrize("schedule", [pytest.param(c(), id=n) for n, c in SCHEDULES.items()])
usual = [("vp", "linear"), ("ve", "geometric")]
usual_paths = paths(usual)
short_paths = paths(usual, t_min=0.02)  # of the same laws, from a later time: fewer evaluations


def f64(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def times_of(sde, n: int = 41, start: float | None = None) -> Tensor:
    """n times from start (t_min) to t_max inclusive, half of them geometric, so that small times are well covered."""
    first = sde.t_min if start is None else start
    even = torch.linspace(first, sde.t_max, n // 2, dtype=torch.float64)
    small = torch.logspace(0, 1, n - n // 2, base=max(first, 1e-5) / sde.t_max, dtype=torch.float64) * sde.t_max
    return torch.cat([even, small.clamp(first, sde.t_max)]).unique()


def rotated(angle: float, *variances: float) -> Tensor:
    c, s = torch.cos(torch.tensor(angle)).double(), torch.sin(torch.tensor(angle)).double()
    axes = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    return axes @ torch.diag(f64(*variances)) @ axes.T


def mixture_2d() -> GaussianMixture:
    """Three tilted components; neither mean nor covariance is the prior's."""
    means = [[1.5, -0.5], [-1.0, 1.0], [0.3, -1.6]]
    covs = [rotated(0.4, 0.30, 0.05), rotated(-0.9, 0.20, 0.10), rotated(1.3, 0.15, 0.06)]
    return GaussianMixture(f64(0.5, 0.3, 0.2), f64(*means), torch.stack(covs))


def mixture_of(d: int, k: int = 3) -> GaussianMixture:
    """k components with full covariances in d dimensions."""
    a = normal(7, k, d, d)
    covs = a @ a.mT / d * 0.2 + 0.1 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.arange(1, k + 1, dtype=torch.float64) / (k * (k + 1) / 2), normal(8, k, d), covs)


def one_gaussian() -> GaussianMixture:
    """Anisotropic, with a mean."""
    return GaussianMixture(f64(1.0), f64([0.7, -1.2]), rotated(0.6, 0.5, 0.05)[None])


def level(gaussian: GaussianMixture, sde, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of one Gaussian noised to t, from the definition."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha * gaussian.means[0], alpha**2 * gaussian.covs[0] + sigma**2 * torch.eye(2, dtype=torch.float64)


def noised(sde, mixture: GaussianMixture, n: int, t: float, seed: int = 0) -> Tensor:
    """n draws of x at time t."""
    x0, _ = mixture.sample(n, generator(seed))
    return sde.perturb(x0, f64(t)[0], normal(seed + 1, *x0.shape))


def no_noise(counter):
    raise AssertionError("an ODE sampler asked for noise")


class Fixed(nn.Module):
    """A network that returns what it was given, and keeps what it was called with."""

    def __init__(self, out: Tensor):
        super().__init__()
        self.out, self.calls = out, []

    def forward(self, x, c_noise):
        self.calls.append((x, c_noise))
        return self.out


class Recorder(Denoiser):
    """The denoiser inside, whose calls are kept."""

    def __init__(self, inner: Denoiser):
        super().__init__(inner.sde)
        self.inner, self.calls = inner, []

    def parts(self, xt, t, **cond):
        self.calls.append((xt, t))
        return self.inner.parts(xt, t, **cond)


class Twice(Denoiser):
    """Calls the denoiser inside twice, as guidance does: the same answer at double the cost."""

    def __init__(self, inner: Denoiser):
        super().__init__(inner.sde)
        self.inner = inner

    def parts(self, xt, t, **cond):
        mean = (self.inner(xt, t, **cond) + self.inner(xt, t, **cond)) / 2
        return torch.zeros_like(t), torch.ones_like(t), mean


class Shifted(Exact):
    """The exact score plus `size * direction(x) / sigma`: a denoiser that is wrong by a known amount."""

    def __init__(self, sde, mixture, size: float):
        super().__init__(sde, mixture)
        self.size = size

    def parts(self, xt, t, **cond):
        c_skip, c_out, score = super().parts(xt, t, **cond)
        wrong = torch.stack([torch.sin(xt[:, 1]), 0.5 + torch.cos(xt[:, 0])], dim=1)
        return c_skip, c_out, score + self.size * wrong / self.sde.sigma(t).view(-1, 1)
