"""Adaptive Dormand-Prince on the probability-flow ODE."""

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.numeric import match
from diffcli.diffusion.ode import DormandPrince, pf_ode
from diffcli.diffusion.samplers.base import Sampler, Samples, straight


class RK45(Sampler):
    """Dormand-Prince 5(4) in lam with a step size an item, to the local error `tol` (absolute and relative).

    It chooses its own steps; the grid gives the first and last time, and the times at which a callback looks.
    Raises ValueError unless 0 < tol < 1.  Dormand & Prince 1980; Song et al. 2021, app. D.4, arXiv:2011.13456.
    """

    kind = "ode"
    order = 5
    evaluations = None

    def __init__(self, tol: float = 1e-5):
        self.ode = DormandPrince(tol)

    def walk(self, denoiser, x, times, noise, callback=None, progress=straight):
        lam, before = denoiser.sde.lam(times), evaluations(denoiser)
        frames = None if callback is None else Frames(lam[1:], x)
        (x,), nfe = self.ode.solve(pf_ode(denoiser), (x,), lam[0].item(), lam[-1].item(), observe=frames)
        for i, frame in enumerate([] if frames is None else frames.x):
            callback(i + 1, frame)
        # what one call of the denoiser costs at the network (guidance calls it twice); the slowest item took every call
        cost = (evaluations(denoiser) - before) // (x.shape[0] * int(nfe.max()))
        return Samples(x, nfe * cost)


class Frames:
    """The path at given values of tau, by cubic Hermite interpolation of each item's own accepted steps."""

    def __init__(self, tau: Tensor, x: Tensor):
        self.tau = tau.to(x.device)
        self.x = x.repeat(len(tau), *[1] * x.ndim)

    def __call__(self, tau: Tensor, end: Tensor, y, new, slope, new_slope, accept: Tensor) -> None:
        for frame, at in zip(self.x, self.tau, strict=True):
            inside = accept & (at > tau) & (at <= end)
            h = end - tau
            u = torch.where(inside, (at - tau) / h, 0.0)
            h00, h10, h11 = (1 + 2 * u) * (1 - u) ** 2, h * u * (1 - u) ** 2, h * u**2 * (u - 1)
            a, b, c, d = (match(w, frame) for w in (h00, h10, 1 - h00, h11))
            path = a * y[0] + b * slope[0] + c * new[0] + d * new_slope[0]
            frame[inside] = path[inside]
