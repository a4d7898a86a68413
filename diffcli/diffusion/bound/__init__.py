from diffcli.diffusion.bound.base import Bound, Strata, VariationalBound
from diffcli.diffusion.bound.continuous import ContinuousBound
from diffcli.diffusion.bound.discrete import DiscreteBound

__all__ = ["Bound", "ContinuousBound", "DiscreteBound", "Strata", "VariationalBound"]
