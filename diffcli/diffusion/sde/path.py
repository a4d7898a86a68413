"""Any Gaussian path: alpha(t) and sigma(t) as the user gives them."""

import torch
from torch import Tensor, nn

from diffcli.diffusion.sde.solved import Own, Solved, scalar, usable


class Path(Solved):
    """`p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)`; f, g^2 and all else follow by automatic differentiation.

    alpha, sigma: an expression (see `Expression`), a number, or a module t -> value on float64 tensors.
    t_min is 0 where there is noise at t = 0, else 1e-5; t_max is 1 where alpha(1) > 0, else 0.999.
    Raises ValueError unless alpha and sigma are above 0 and lam falls.  Kingma et al. 2021, sec. 3.1, arXiv:2107.00630.
    """

    def __init__(
        self,
        alpha: str | float | nn.Module,
        sigma: str | float | nn.Module,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        super().__init__()
        self.factor, self.noise = Own("alpha", alpha), Own("sigma", sigma)
        if t_min is None:
            t_min = 0.0 if usable(scalar(self.lam, 0.0)) else 1e-5
        if t_max is None:
            t_max = 1.0 if usable(scalar(self.lam, 1.0)) else 0.999
        self._check_range(t_min, t_max)
        t = torch.linspace(t_min, t_max, 1001, dtype=torch.float64)
        for own in (self.factor, self.noise):
            self._refuse(t, ~(own(t) > 0), f"{own.name} must be above 0, and is not at t = {{:.6g}}")
        self._check(t_min, t_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(self.factor(t))

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(self.noise(t))

    def _lam_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            lam = self.lam(t)
            return lam.detach(), torch.autograd.grad(lam.sum(), t)[0]
