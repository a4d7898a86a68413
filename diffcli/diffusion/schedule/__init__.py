from diffcli.diffusion.schedule.base import Schedule
from diffcli.diffusion.schedule.smooth import Cosine, Geometric, Linear, Logit

__all__ = ["Cosine", "Geometric", "Linear", "Logit", "Schedule"]
