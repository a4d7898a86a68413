from diffcli.diffusion.sde.base import SDE
from diffcli.diffusion.sde.drift import Drift
from diffcli.diffusion.sde.one import OneLevel
from diffcli.diffusion.sde.ou import OU
from diffcli.diffusion.sde.path import Path
from diffcli.diffusion.sde.scheduled import VE, VP, Flow, Scheduled, SubVP

__all__ = ["OU", "SDE", "VE", "VP", "Drift", "Flow", "OneLevel", "Path", "Scheduled", "SubVP"]
