"""Log-likelihood by the probability-flow ODE, with its errors."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.numeric import require
from diffcli.diffusion.ode import DormandPrince, FixedStep


class LogLikelihood(NamedTuple):
    """log_prob (B,) in nats, in model space; std_err (B,) of the divergence estimate; x1 at t_max; nfe (B,)."""

    log_prob: Tensor
    std_err: Tensor
    x1: Tensor
    nfe: Tensor


class ExactDivergence:
    """`div u = sum_i du_i/dx_i` by d vector-Jacobian products, in chunks of `chunk` at once."""

    def __init__(self, chunk: int = 64):
        self.chunk = chunk

    def probes(self, x: Tensor, signs) -> None:
        return None

    def __call__(self, u: Tensor, x: Tensor, probes) -> Tensor:
        d = x[0].numel()
        total = torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device)
        for start in range(0, d, self.chunk):
            rows = torch.arange(start, min(start + self.chunk, d), device=x.device)
            basis = torch.nn.functional.one_hot(rows, d).to(u.dtype)  # (c, d)
            basis = basis[:, None].expand(-1, x.shape[0], -1).reshape(len(rows), *x.shape)
            (columns,) = torch.autograd.grad(u, x, basis, is_grads_batched=True, retain_graph=True)
            diagonal = columns.flatten(2).gather(2, rows.view(-1, 1, 1).expand(-1, x.shape[0], 1))
            total += diagonal.double().sum(0)
        return total


class Hutchinson:
    """`div u ~ (1/K) sum_k e_k^T (du/dx) e_k` with Rademacher probes, fixed along a trajectory; one column a probe.

    Hutchinson 1990; Grathwohl et al. 2019, sec. 3.1, arXiv:1810.01367.  Raises ValueError if probes < 1.
    """

    def __init__(self, probes: int = 8):
        require(probes >= 1, f"probes must be at least 1, got {probes}")
        self.count = probes

    def probes(self, x: Tensor, signs) -> Tensor:
        return signs("probes", self.count).to(x)

    def __call__(self, u: Tensor, x: Tensor, probes: Tensor) -> Tensor:
        columns = []
        for k in range(self.count):
            (vjp,) = torch.autograd.grad(u, x, probes[:, k], retain_graph=k + 1 < self.count)
            columns.append((vjp * probes[:, k]).double().flatten(1).sum(1))
        return torch.stack(columns, dim=1)


class Likelihood:
    """`log p(x_0) = log p_1(x_1) + int_0^1 div v dt` along the probability-flow ODE, integrated in lam from t_min to t_max.

    divergence: exact, or hutchinson with `probes` probes.  solver: rk45 (adaptive to `tol`, which bounds the local error of
    x and of the log-density per dimension), or rk4, heun with `steps` steps uniform in lam.
    Raises ValueError for a value out of range.  Song et al. 2021, eq. 39, arXiv:2011.13456.
    """

    def __init__(
        self,
        divergence: Literal["exact", "hutchinson"] = "hutchinson",
        probes: int = 8,
        solver: Literal["rk45", "rk4", "heun"] = "rk45",
        tol: float = 1e-5,
        steps: int = 32,
    ):
        require(divergence in ("exact", "hutchinson"), f"divergence must be one of exact, hutchinson, got {divergence}")
        self.divergence = ExactDivergence() if divergence == "exact" else Hutchinson(probes)
        self.ode = DormandPrince(tol) if solver == "rk45" else FixedStep(solver, steps)

    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        """For x0 (B, *S) at t_min; `noise.signs(name, K)` gives the probes."""
        return log_likelihood(denoiser, x0, self.ode, self.divergence, noise.signs, **cond)


def log_likelihood(denoiser: Denoiser, x0: Tensor, ode, divergence, signs, **cond) -> LogLikelihood:
    """The log-density of x0 (B, *S), placed at t_min, under the probability-flow ODE; the integral is kept in float64."""
    sde, d = denoiser.sde, x0[0].numel()
    probes = divergence.probes(x0, signs)

    def fn(y, lam):
        with torch.enable_grad():
            x = y[0].detach().requires_grad_()
            u = denoiser.velocity_lam(x, sde.time(lam), **cond)
            div = divergence(u, x, probes)
        return u.detach(), div.detach()

    ends = sde.lam(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    columns = 1 if probes is None else probes.shape[1]
    integral = torch.zeros(x0.shape[0], columns, dtype=torch.float64, device=x0.device)
    before = evaluations(denoiser)
    (x1, integral), nfe = ode.solve(fn, (x0, integral), *ends, scales=[(1.0, 1.0), (float(d), 0.0)])
    # what one call of the denoiser costs at the network; the slowest item took every call
    nfe = nfe * ((evaluations(denoiser) - before) // (x0.shape[0] * int(nfe.max())))
    # one probe says nothing about its own error
    std_err = (
        integral.std(1) / columns**0.5
        if columns > 1
        else torch.full_like(integral[:, 0], 0.0 if probes is None else float("nan"))
    )
    return LogLikelihood(sde.prior_log_prob(x1) + integral.mean(1), std_err, x1, nfe)
