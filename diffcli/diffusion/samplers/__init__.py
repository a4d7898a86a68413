from diffcli.diffusion.samplers.ancestral import Ancestral
from diffcli.diffusion.samplers.base import FixedGrid, Sampler, Samples, sample
from diffcli.diffusion.samplers.ddim import DDIM
from diffcli.diffusion.samplers.dpm2 import DPM2
from diffcli.diffusion.samplers.euler_maruyama import EulerMaruyama
from diffcli.diffusion.samplers.heun import Heun
from diffcli.diffusion.samplers.rk45 import RK45

__all__ = ["DDIM", "DPM2", "RK45", "Ancestral", "EulerMaruyama", "FixedGrid", "Heun", "Sampler", "Samples", "sample"]
