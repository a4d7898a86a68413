from diffcli.diffusion.inverse.custom import Custom
from diffcli.diffusion.inverse.operator import Operator
from diffcli.diffusion.inverse.operators import Blur, Downsample, Grey, Identity, Mask, Matrix
from diffcli.diffusion.inverse.solve import solve

__all__ = ["Blur", "Custom", "Downsample", "Grey", "Identity", "Mask", "Matrix", "Operator", "solve"]
