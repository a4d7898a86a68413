"""Maximum likelihood through an ODE: continuous normalizing flows."""

import contextlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.density import divergence
from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.numeric import require


class CNF(Loss):
    """`-log p(x0) = -log p_1(x(t_max)) - int div v dt` in nats, `dx/dt = v(x, t)` the denoiser's velocity, `x(t_min) = x0`.

    divergence: exact (d vector-Jacobian products), or hutchinson (one Rademacher probe an item and solve, unbiased).
    gradient: adjoint (an ODE solved backwards: memory does not grow with steps), or backprop through the solver.
    solver: rk45 (adaptive to `tol`, over the joint batch), or rk4, midpoint with `steps` equal steps in t.
    integrate(field, (x, l), t0, t1, gradient, solver, tol, steps) -> (x, l): the ODE library.
    Raises ValueError for a value out of range, and in `setup` for a model that is no free velocity field.
    Chen et al. 2018, arXiv:1806.07366; Grathwohl et al. 2019, arXiv:1810.01367.
    """

    double_backward = True
    full_precision = True  # the noise of bfloat16 is no error to solve to

    def __init__(
        self,
        integrate: Callable,
        divergence: Literal["exact", "hutchinson"] = "hutchinson",
        gradient: Literal["adjoint", "backprop"] = "adjoint",
        solver: Literal["rk45", "rk4", "midpoint"] = "rk45",
        tol: float = 1e-5,
        steps: int = 20,
    ):
        super().__init__()
        for name, value, options in (
            ("divergence", divergence, ("exact", "hutchinson")),
            ("gradient", gradient, ("adjoint", "backprop")),
            ("solver", solver, ("rk45", "rk4", "midpoint")),
        ):
            require(value in options, f"{name} must be one of {', '.join(options)}, got {value}")
        require(0 < tol < 1, f"tol must lie between 0 and 1, got {tol}")
        require(steps >= 1, f"steps must be at least 1, got {steps}")
        self.integrate, self.hutchinson = integrate, divergence == "hutchinson"
        self.options = dict(gradient=gradient, solver=solver, tol=float(tol), steps=steps)

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        require(denoiser.sde.is_process, "cnf needs a process with a prior, not one noise level (levels=all)")
        require(not denoiser.posterior_mean, "cnf trains a free field, prediction=velocity prediction.free=true")
        dropping = [m for m in denoiser.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        require(not dropping, "cnf solves an ODE, and dropout changes it at every evaluation: take network.dropout=0")

    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor:
        sde = denoiser.sde
        x = x0.to(torch.promote_types(x0.dtype, torch.float32))
        probe = None
        if self.hutchinson:
            probe = torch.where(draw.uniform("probe", x.shape) < 0.5, -1.0, 1.0).to(x)
        field = Field(denoiser, probe, cond)
        x1, gained = self.integrate(field, (x, x.new_zeros(x.shape[0])), sde.t_min, sde.t_max, **self.options)
        return -(sde.prior_log_prob(x1) + gained).to(x.dtype)


class Field(nn.Module):
    """`(t, (x, l)) -> (v, div v)`, differentiable where gradients are on; its parameters are the denoiser's."""

    def __init__(self, denoiser: Denoiser, probe: Tensor | None, cond: dict):
        super().__init__()
        self.denoiser, self.probe, self.cond = denoiser, probe, cond

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, outside, sde = state[0], torch.is_grad_enabled(), self.denoiser.sde
        t = t.double().clamp(sde.t_min, sde.t_max)  # a solver in float32 rounds it, beyond the ends too
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused kernels cannot be differentiated twice
            stack.enter_context(torch.autocast(x.device.type, enabled=False))
            x = x if outside and x.requires_grad else x.detach().requires_grad_()
            v = self.denoiser.velocity(x, t, **self.cond)
            if self.probe is None:
                div = divergence(v, x, create_graph=outside)
            else:
                (vjp,) = torch.autograd.grad(v, x, self.probe, create_graph=outside)
                div = (vjp * self.probe).flatten(1).sum(1)
        return (v, div) if outside else (v.detach(), div.detach())
