from diffcli.diffusion.loss.base import Loss, TrainingSet
from diffcli.diffusion.loss.dsm import DSM

__all__ = ["DSM", "Loss", "TrainingSet"]
