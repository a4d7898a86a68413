from diffcli.diffusion.likelihood.base import LogDensity, LogLikelihood
from diffcli.diffusion.likelihood.divergence import ExactDivergence, Hutchinson
from diffcli.diffusion.likelihood.ode import Likelihood, log_likelihood

__all__ = ["ExactDivergence", "Hutchinson", "Likelihood", "LogDensity", "LogLikelihood", "log_likelihood"]
