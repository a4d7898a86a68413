from diffcli.diffusion.guidance.base import Wrapper
from diffcli.diffusion.guidance.conditioned import Conditioned
from diffcli.diffusion.guidance.rescaled import Rescaled

__all__ = ["Conditioned", "Rescaled", "Wrapper"]
