"""What `nll` asks of a way to find a log-density, and what it gets."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import TrainingSet


class LogLikelihood(NamedTuple):
    """What is known of items, each (B,) but x1; log-densities in nats, in model space.

    log_prob: of the law at t_min.  std_err: of the divergence estimate, 0 where it is exact, nan where it has no error of its
    own.  x1 (B, *S): where the item stands at t_max.  nfe: evaluations of the network.  solver_err: estimate of the
    integrator's own error, nan where the solver gives none.  truncation: estimate of `log p_{t_min}(x0) - log p_0(x0)`, nan
    where none is known.  path_gap: how far two ways to the item differ, 0 where the score is that of a density, nan where there
    is only one.
    """

    log_prob: Tensor
    std_err: Tensor
    x1: Tensor
    nfe: Tensor
    solver_err: Tensor | float = float("nan")
    truncation: Tensor | float = float("nan")
    path_gap: Tensor | float = float("nan")


class LogDensity(ABC):
    """The log-density of items under a model, found in one way.

    normalised: whether it integrates to 1.  needs_process: whether it walks from data to noise, which one level does not allow.
    """

    normalised: bool = True
    needs_process: bool = True

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:  # noqa: B027 - most need nothing
        """Called once, before any work: take what is needed of the model and of the training items.

        Raises ValueError where this way does not go with them, in a sentence that says what would.
        """

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        """For x0 (B, *S) in model space, placed at t_min; `noise` is an ItemNoise of these items."""

    def findings(self) -> dict[str, float]:
        """What was found once, for all items, after the first call: figures for the record of the run."""
        return {}
