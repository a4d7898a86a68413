from diffcli.diffusion.schedule.base import Schedule
from diffcli.diffusion.schedule.beta import Constant, Linear, Quadratic
from diffcli.diffusion.schedule.smooth import EDM, Cosine, Geometric, Logit, Sigmoid
from diffcli.diffusion.schedule.table import DDPM, NCSN, Table

__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "Constant",
    "Cosine",
    "Geometric",
    "Linear",
    "Logit",
    "Quadratic",
    "Schedule",
    "Sigmoid",
    "Table",
]
