"""Flow matching, from noise or from the items of a second data set."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.time_sampling import Uniform

NEAR = 0.05  # how far alpha may be from 0, and sigma from 1, where a path ends in a source's items


class Flow(Loss):
    """`||u_theta(x_t, t) - (alpha' x0 + sigma' x1 + gamma' z)||^2` at `x_t = alpha x0 + sigma x1 + gamma z`, t uniform on
    [t_min, t_max], on the path of any process.

    x1 is standard normal noise, or of `source`, a callable (x0, draw, training) -> x1 (B, *S): items of a second data set,
    between which and the data the model is then the velocity of an ODE, a free field.  `gamma = noise sqrt(alpha sigma)` is
    of a source alone; on the linear path it is the Brownian bridge's `noise sqrt(t (1 - t))`.
    coupling: an object (x0, x1, draw, label) -> (x0, x1) with a `setup(denoiser, data)`, which decides the x1 that an item
    meets; independent pairs are flow matching, minibatch optimal transport is OT-CFM, pairs of a model's own ODE are reflow.
    Raises ValueError for a negative noise, or one without a source; in `setup` for a single noise level, for a source with a
    model that is no free field or with a path that does not end in it, and what the coupling raises.
    Lipman et al. 2023, eq. 14, arXiv:2210.02747; Tong et al. 2024, arXiv:2302.00482; Liu et al. 2023, arXiv:2209.03003;
    Albergo & Vanden-Eijnden 2023, arXiv:2209.15571; Albergo et al. 2023, arXiv:2303.08797.
    """

    def __init__(self, coupling, source: Callable | None = None, noise: float = 0.0):
        super().__init__()
        require(noise >= 0, f"noise must be at least 0, got {noise}")
        require(source is not None or noise == 0, "noise= is of a source of items: without one x1 is noise already")
        self.coupling, self.source, self.noise = coupling, source, float(noise)
        self.time = Uniform()

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require(
            denoiser.sde.is_process, "loss=flow fits the velocity of a process, and one noise level has none: loss=dsm"
        )
        if self.source is not None:
            require(
                not denoiser.posterior_mean, "source= trains a free field: prediction=velocity prediction.free=true"
            )
            require_ends(denoiser.sde)
        self.coupling.setup(denoiser, data)

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        sde = denoiser.sde
        t, _ = self.time(sde, x0.shape[0], draw)
        drawn = draw.normal("eps", x0.shape, x0.dtype) if self.source is None or self.noise else None
        x1 = drawn if self.source is None else self.source(x0, draw, self.training)
        x0, x1 = self.coupling(x0, x1, draw, cond.get("label"))
        xt = sde.perturb(x0, t, x1)
        target = match(sde.alpha(t) * sde.f(t), x0) * x0 + match(sde.sigma(t) * sde.dlog_sigma(t), x0) * x1
        if self.noise:
            gamma, slope = bridge(sde, t, self.noise)
            xt, target = xt + match(gamma, x0) * drawn, target + match(slope, x0) * drawn
        return (denoiser.velocity(xt, t, **cond) - target).flatten(1).square().sum(1)


def bridge(sde: SDE, t: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """`gamma = noise sqrt(alpha sigma)` and `gamma' = gamma (log(alpha)' + log(sigma)') / 2`, of t's shape."""
    gamma = noise * torch.sqrt(sde.alpha(t) * sde.sigma(t))
    return gamma, gamma * (sde.f(t) + sde.dlog_sigma(t)) / 2


def require_ends(sde: SDE) -> None:
    """Raise ValueError unless x at t_max is x1: alpha near 0, sigma near 1."""
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    require(
        alpha <= NEAR and abs(sigma - 1) <= NEAR,
        f"source= needs a path that ends in its items, alpha = 0 and sigma = 1; at t_max this one has alpha = {alpha:.3g} and "
        f"sigma = {sigma:.3g}: take sde=flow",
    )
