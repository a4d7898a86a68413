"""Flow matching."""

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.time_sampling import Uniform


class Flow(Loss):
    """`||u_theta(x_t, t) - (alpha' x0 + sigma' eps)||^2`, t uniform on [t_min, t_max], on the path of any process.

    coupling: an object (x0, eps, draw) -> (x0, eps) with a `setup(denoiser, data)`, which decides the noise that an item
    meets; independent pairs are flow matching, minibatch optimal transport is OT-CFM, pairs of a model's own ODE are reflow.
    Raises ValueError in `setup` for a single noise level, and what the coupling raises.
    Lipman et al. 2023, eq. 14, arXiv:2210.02747; Tong et al. 2024, arXiv:2302.00482; Liu et al. 2023, arXiv:2209.03003.
    """

    def __init__(self, coupling):
        super().__init__()
        self.coupling = coupling
        self.time = Uniform()

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require(
            denoiser.sde.is_process, "loss=flow fits the velocity of a process, and one noise level has none: loss=dsm"
        )
        self.coupling.setup(denoiser, data)

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        sde = denoiser.sde
        t, _ = self.time(sde, x0.shape[0], draw)
        x0, eps = self.coupling(x0, draw.normal("eps", x0.shape, x0.dtype), draw)
        target = match(sde.alpha(t) * sde.f(t), x0) * x0 + match(sde.sigma(t) * sde.dlog_sigma(t), x0) * eps
        return (denoiser.velocity(sde.perturb(x0, t, eps), t, **cond) - target).flatten(1).square().sum(1)
