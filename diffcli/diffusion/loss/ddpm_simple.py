"""DDPM's simple loss, on the levels of a chain."""

from torch import Tensor

from diffcli.diffusion.chain import levels_of
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import require


class DDPMSimple(Loss):
    """`||eps_theta(x_t, t) - eps||^2`, t uniform on the levels of the chain: twice `dsm` with weight simple there.

    T: number of levels on a continuous schedule, default 1000, at t_max i/T; a chain has its own.
    Raises ValueError unless T >= 2.  Ho et al. 2020, eq. 14, arXiv:2006.11239.
    """

    def __init__(self, T: int | None = None):
        super().__init__()
        require(T is None or T >= 2, f"T must be at least 2, got {T}")
        self.T, self._times = T, None

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        self._times = levels_of(denoiser.sde, self.T)

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        times = self._times or levels_of(denoiser.sde, self.T)
        t, _ = times(denoiser.sde, x0.shape[0], draw)
        eps = draw.normal("eps", x0.shape, x0.dtype)
        xt = denoiser.sde.perturb(x0, t, eps)
        return (denoiser.eps(xt, t, **cond) - eps).flatten(1).square().sum(1)
