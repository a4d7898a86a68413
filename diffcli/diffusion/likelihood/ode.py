"""Log-likelihood by the probability-flow ODE, with its errors."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.likelihood.base import LogDensity, LogLikelihood
from diffcli.diffusion.likelihood.divergence import ExactDivergence, Hutchinson
from diffcli.diffusion.numeric import require
from diffcli.diffusion.ode import DormandPrince, FixedStep
from diffcli.diffusion.prior import Prior, StandardPrior, matched_prior

PRIORS = {"standard": lambda denoiser, data: StandardPrior(denoiser.sde), "moments": matched_prior}


class Likelihood(LogDensity):
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
        prior: Literal["standard", "moments"] = "standard",
    ):
        require(prior in PRIORS, f"prior must be one of {', '.join(PRIORS)}, got {prior}")
        require(divergence in ("exact", "hutchinson"), f"divergence must be one of exact, hutchinson, got {divergence}")
        self.divergence = ExactDivergence() if divergence == "exact" else Hutchinson(probes)
        self.ode = DormandPrince(tol) if solver == "rk45" else FixedStep(solver, steps)
        self.wish, self.prior = prior, None

    def setup(self, denoiser, data):
        self.prior = PRIORS[self.wish](denoiser, data)

    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        require(
            self.prior is not None or self.wish == "standard", "prior=moments needs training items: call setup first"
        )
        prior = self.prior or StandardPrior(denoiser.sde)
        return log_likelihood(denoiser, x0, self.ode, self.divergence, noise.signs, prior, **cond)


def log_likelihood(
    denoiser: Denoiser, x0: Tensor, ode, divergence, signs, prior: Prior | None = None, **cond
) -> LogLikelihood:
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
    unknown = torch.full_like(std_err, float("nan"))
    ends = (prior or StandardPrior(sde)).log_prob(x1)
    return LogLikelihood(ends + integral.mean(1), std_err, x1, nfe, unknown, unknown)
