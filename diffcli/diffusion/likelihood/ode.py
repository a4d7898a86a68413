"""Log-likelihood by the probability-flow ODE, with its errors."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.endings import Ended, bad_rows, fine, first_row
from diffcli.diffusion.likelihood.base import LogDensity, LogLikelihood
from diffcli.diffusion.likelihood.control import Control
from diffcli.diffusion.likelihood.divergence import Divergence, ExactDivergence, Hutchinson
from diffcli.diffusion.likelihood.exponential import Exponential
from diffcli.diffusion.likelihood.field import Field
from diffcli.diffusion.likelihood.solver import InLam, Solver
from diffcli.diffusion.likelihood.truncation import truncation
from diffcli.diffusion.numeric import require
from diffcli.diffusion.ode import MAX_NFE, DormandPrince, FixedStep
from diffcli.diffusion.prior import Prior, StandardPrior, data_moments, known_mixture, matched_prior

PRIORS = {"standard": lambda denoiser, data: StandardPrior(denoiser.sde), "moments": matched_prior}
TOL = {"exponential": 0.01, "rk45": 1e-5}  # unless another is asked for
SOLVERS = {
    "exponential": lambda tol, steps, max_nfe: Exponential(steps, tol),
    "rk45": lambda tol, steps, max_nfe: InLam(DormandPrince(tol, max_nfe)),
    "rk4": lambda tol, steps, max_nfe: InLam(FixedStep("rk4", steps)),
    "heun": lambda tol, steps, max_nfe: InLam(FixedStep("heun", steps)),
}


class Likelihood(LogDensity):
    """`log p(x_0) = log p_1(x_1) + int_0^1 div v dt` along the probability-flow ODE, from t_min to t_max.

    divergence: exact, or hutchinson with `probes` probes of `noise` rademacher, gaussian or orthogonal, which are fixed, fresh
    or in blocks `along` the path (null: blocks for exponential, fixed for the others, and fresh where they are orthogonal);
    control: moments takes out of it what is known of Gaussian data with the moments of the training items.
    memory: GiB that products of the divergence taken at once may need.
    solver: exponential (semi-linear multistep, `steps` steps, twice as many for an item whose estimated error is above `tol`
    nats a dimension), rk45 (adaptive in lam; `tol` bounds the local error of x and of the log-density per dimension), or rk4,
    heun with `steps` steps uniform in lam.  tol: null for the solver's own, 0.01 and 1e-5.  max_nfe: calls of the model
    that an item may take by rk45.
    prior: standard, N(0, prior_std^2 I), or moments, the Gaussian with the mean and covariance of the noised training items.
    Raises ValueError for a value out of range.  Song et al. 2021, eq. 39, arXiv:2011.13456.
    """

    def __init__(
        self,
        divergence: Literal["exact", "hutchinson"] = "hutchinson",
        probes: int = 8,
        noise: Literal["rademacher", "gaussian", "orthogonal"] = "rademacher",
        along: Literal["fixed", "fresh", "blocks"] | None = None,
        control: Literal["none", "moments"] = "none",
        solver: Literal["exponential", "rk45", "rk4", "heun"] = "exponential",
        tol: float | None = None,
        steps: int = 32,
        prior: Literal["standard", "moments"] = "standard",
        memory: float = 1.0,
        max_nfe: int = MAX_NFE,
    ):
        for name, value, options in (
            ("divergence", divergence, ("exact", "hutchinson")),
            ("solver", solver, SOLVERS),
            ("prior", prior, PRIORS),
            ("control", control, ("none", "moments")),
        ):
            require(value in options, f"{name} must be one of {', '.join(options)}, got {value}")
        room = memory * 2**30
        if along is None:
            along = ("fresh" if noise == "orthogonal" else "blocks") if solver == "exponential" else "fixed"
        fits = f"rk45 chooses its steps by the divergence, whose probes must be fixed along the path, got along={along}"
        require(solver != "rk45" or along == "fixed", fits)
        exact = divergence == "exact"
        self.divergence = ExactDivergence(room) if exact else Hutchinson(probes, noise, room, along)
        self.controlled, self.control = control == "moments" and not exact, None
        self.solver = SOLVERS[solver](TOL.get(solver) if tol is None else tol, steps, max_nfe)
        self.wish, self.prior = prior, None

    def setup(self, denoiser, data):
        self.prior = PRIORS[self.wish](denoiser, data)
        if self.controlled:
            self.control = Control(data_moments(denoiser, data, "control=moments")[1])
        mixture = known_mixture(denoiser, data)
        if mixture is not None:
            self.solver.setup(mixture.variances.min().sqrt().item())
        elif data.levels is not None:
            self.solver.setup(1 / (3**0.5 * data.levels))  # of the uniform noise within a level

    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        require(
            self.prior is not None or self.wish == "standard", "prior=moments needs training items: call setup first"
        )
        require(
            self.control is not None or not self.controlled, "control=moments needs training items: call setup first"
        )
        prior = self.prior or StandardPrior(denoiser.sde)
        return log_likelihood(denoiser, x0, self.solver, self.divergence, noise, prior, self.control, **cond)


def log_likelihood(
    denoiser: Denoiser,
    x0: Tensor,
    solver: Solver,
    divergence: Divergence,
    noise,
    prior: Prior,
    control: Control | None = None,
    **cond,
) -> LogLikelihood:
    """The log-density of x0 (B, *S), placed at t_min, under the probability-flow ODE; the integral is kept in float64.

    Raises Ended where the solver cannot go on, and for a log-density that is not finite.
    """
    field, who = Field(denoiser, divergence, noise, cond, control), "the likelihood"
    try:
        walk = solver(field, x0)
    except Ended as error:
        at = denoiser.sde.time(torch.tensor(error.at, dtype=torch.float64)).item()
        raise error.said(clock="t", at=at, nfe=error.nfe * field.cost(), who=who) from None
    columns, cut = field.columns, truncation(field.first, denoiser.sde)
    # one probe says nothing about its own error, an exact divergence has none
    alone = torch.full_like(cut[:, 0], float("nan") if isinstance(divergence, Hutchinson) else 0.0)
    std_err = walk.integral.std(1) / columns**0.5 if columns > 1 else alone
    log_prob = prior.log_prob(walk.x1) + walk.integral.mean(1)
    nfe = walk.calls * field.cost()
    if not fine(log_prob[:, None]):
        row = first_row(bad_rows(log_prob[:, None]))
        raise Ended("log p is not finite", at=denoiser.sde.t_max, nfe=int(nfe[row]), row=row, who=who)
    return LogLikelihood(log_prob, std_err, walk.x1, nfe, walk.error, cut.mean(1))
