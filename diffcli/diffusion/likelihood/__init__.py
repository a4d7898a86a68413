from diffcli.diffusion.likelihood.base import LogDensity, LogLikelihood
from diffcli.diffusion.likelihood.divergence import ExactDivergence, Hutchinson
from diffcli.diffusion.likelihood.energy import EnergyDensity
from diffcli.diffusion.likelihood.exponential import Exponential
from diffcli.diffusion.likelihood.ode import Likelihood, log_likelihood
from diffcli.diffusion.likelihood.path_integral import PathIntegral
from diffcli.diffusion.likelihood.solver import InLam

__all__ = [
    "EnergyDensity",
    "ExactDivergence",
    "Exponential",
    "Hutchinson",
    "InLam",
    "Likelihood",
    "LogDensity",
    "LogLikelihood",
    "PathIntegral",
    "log_likelihood",
]
