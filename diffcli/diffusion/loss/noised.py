"""What the losses of a score at noised data share: at which levels, with which weight, and what they refuse."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import require
from diffcli.diffusion.time_sampling import Uniform

THIN = 100.0  # times the information of a Gaussian of the data's variance: no data with noise of a tenth of their size have more


def level_weight(sde, t: Tensor) -> Tensor:
    """`w(t)` (n,): sigma^2 across the levels of a process, 1 at a single level."""
    return sde.sigma(t) ** 2 if sde.is_process else torch.ones_like(t)


def require_score(denoiser: Denoiser, shape: tuple[int, ...]) -> None:
    """Raise ValueError where the denoiser has no score: at sigma = 0, unless its network predicts the score itself."""
    t = torch.full((1,), denoiser.sde.t_min, dtype=torch.float64)
    if denoiser.sde.sigma(t).item() == 0:
        weight = next(denoiser.parameters(), torch.zeros(()))
        with torch.no_grad():
            score = denoiser.score(torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device), t)
        require(
            bool(torch.isfinite(score).all()),
            "without noise (level.sigma=0) only prediction=score and prediction=energy have a score",
        )


class Implicit(Loss):
    """`w(t) [first + second]`: score matching in which the true score does not appear, at `x_t = alpha x0 + sigma eps`.

    The network is differentiated with respect to x, and that again with respect to its weights.  The weight is sigma^2 across
    the levels of a process (t uniform, stratified over the batch), 1 at one level.  At one level of data that lie on a
    manifold the value falls without bound as sigma -> 0; `warning` says so.  Hyvärinen 2005.
    """

    double_backward = True

    def __init__(self):
        super().__init__()
        self.time = Uniform()
        self.floor, self.size = -math.inf, math.nan  # of the loss a dimension; of the data

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require_score(denoiser, data.shape)
        if not denoiser.sde.is_process:
            x = data.items().double().flatten(1)
            # the minimum is -1/2 the Fisher information a dimension: 1/v for a Gaussian of variance v, never above 1/sigma^2
            alpha = denoiser.sde.alpha(torch.tensor(denoiser.sde.t_min, dtype=torch.float64)).item()
            self.size = alpha * max(x.var(0, correction=0).mean().item(), 1e-30) ** 0.5
            self.floor = -0.5 * THIN / self.size**2

    def warning(self, value: float) -> str | None:
        if value >= self.floor:
            return None
        return (
            f"the loss has fallen to {value:.3g} a dimension: the data hardly fill their space, and without enough noise "
            f"an implicit loss then falls without bound (try: level.sigma={self.size / THIN**0.5:.2g})"
        )

    @abstractmethod
    def bracket(self, score: Tensor, x: Tensor, draw, graph: bool) -> Tensor:
        """(B,) from the score (B, *S) at x; graph: whether to differentiate it again."""

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        t, importance = self.time(denoiser.sde, x0.shape[0], draw)
        x = denoiser.sde.perturb(x0, t, draw.normal("eps", x0.shape, x0.dtype))
        graph = torch.is_grad_enabled()
        # the fused attention kernels have no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = x.detach().requires_grad_()
            value = self.bracket(denoiser.score(x, t, **cond), x, draw, graph)
        value = value if graph else value.detach()
        return (importance * level_weight(denoiser.sde, t)).to(value) * value
