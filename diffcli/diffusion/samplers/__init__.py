from diffcli.diffusion.samplers.adams import LMS, Deis
from diffcli.diffusion.samplers.adams_moulton import AdamsMoulton
from diffcli.diffusion.samplers.adaptive_sde import AdaptiveSDE
from diffcli.diffusion.samplers.ancestral import Ancestral
from diffcli.diffusion.samplers.annealed_langevin import AnnealedLangevin
from diffcli.diffusion.samplers.base import FixedGrid, Sampler, Samples, most_steps, sample
from diffcli.diffusion.samplers.ddim import DDIM
from diffcli.diffusion.samplers.dpm import DPM1, DPM2, DPM3
from diffcli.diffusion.samplers.dpm_adaptive import DPMAdaptive
from diffcli.diffusion.samplers.dpm_taylor import DPMTaylor
from diffcli.diffusion.samplers.dpmpp_multistep import DPMpp2M, DPMpp3M
from diffcli.diffusion.samplers.dpmpp_multistep_sde import DPMpp2MSDE, DPMpp3MSDE
from diffcli.diffusion.samplers.dpmpp_sde import DPMppSDE
from diffcli.diffusion.samplers.dpmpp_singlestep import DPMpp2S
from diffcli.diffusion.samplers.edm_churn import EDMChurn
from diffcli.diffusion.samplers.euler_ancestral import EulerAncestral
from diffcli.diffusion.samplers.euler_maruyama import EulerMaruyama
from diffcli.diffusion.samplers.langevin import Langevin
from diffcli.diffusion.samplers.mode import Mode
from diffcli.diffusion.samplers.pndm import PNDM
from diffcli.diffusion.samplers.predictor_corrector import PredictorCorrector
from diffcli.diffusion.samplers.resample import Resample
from diffcli.diffusion.samplers.reverse_diffusion import ReverseDiffusion
from diffcli.diffusion.samplers.rk45 import RK45
from diffcli.diffusion.samplers.runge_kutta import RK4, Euler, Heun
from diffcli.diffusion.samplers.sa_solver import SASolver
from diffcli.diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM", "DPM1", "DPM2", "DPM3", "LMS", "PNDM", "RK4", "RK45", "AdamsMoulton", "AdaptiveSDE", "Ancestral", "AnnealedLangevin",
    "DPMAdaptive", "DPMTaylor", "DPMpp2M", "DPMpp2MSDE", "DPMpp2S", "DPMpp3M", "DPMpp3MSDE", "DPMppSDE", "Deis",
    "EDMChurn", "Euler", "EulerAncestral", "EulerMaruyama", "FixedGrid", "Heun", "Langevin", "Mode",
    "PredictorCorrector", "Resample", "ReverseDiffusion", "SASolver", "Sampler", "Samples", "UniPC", "most_steps", "sample",
]  # fmt: skip
