from diffcli.diffusion.tuning.fit import Fit, Tuned, fit
from diffcli.diffusion.tuning.grid import TunedGrid

__all__ = ["Fit", "Tuned", "TunedGrid", "fit"]
