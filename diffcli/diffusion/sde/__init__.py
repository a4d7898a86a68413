from diffcli.diffusion.sde.base import SDE
from diffcli.diffusion.sde.one import OneLevel
from diffcli.diffusion.sde.scheduled import VE, VP, Flow, Scheduled, SubVP

__all__ = ["SDE", "VE", "VP", "Flow", "OneLevel", "Scheduled", "SubVP"]
