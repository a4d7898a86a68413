from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.loss.cnf import CNF
from diffcli.diffusion.loss.ddpm_simple import DDPMSimple
from diffcli.diffusion.loss.dsm import DSM
from diffcli.diffusion.loss.edm import EDM
from diffcli.diffusion.loss.esm import ESM
from diffcli.diffusion.loss.flow import Flow
from diffcli.diffusion.loss.ism import ISM
from diffcli.diffusion.loss.ssm import SSM, SSMVR
from diffcli.diffusion.loss.vlb import VLB

__all__ = ["CNF", "DSM", "EDM", "ESM", "ISM", "SSM", "SSMVR", "VLB", "DDPMSimple", "Flow", "Loss", "TrainingSet"]
