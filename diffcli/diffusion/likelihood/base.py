"""What `nll` asks of a way to find a log-density, and what it gets."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import TrainingSet


class LogLikelihood(NamedTuple):
    """log_prob (B,) in nats, in model space; std_err (B,) of the divergence estimate; x1 at t_max; nfe (B,)."""

    log_prob: Tensor
    std_err: Tensor
    x1: Tensor
    nfe: Tensor


class LogDensity(ABC):
    """The log-density of items under a model, found in one way; `normalised` where it integrates to 1."""

    normalised: bool = True

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:  # noqa: B027 - most need nothing
        """Called once, before any work: take what is needed of the model and of the training items.

        Raises ValueError where this way does not go with them, in a sentence that says what would.
        """

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x0: Tensor, noise, **cond) -> LogLikelihood:
        """For x0 (B, *S) in model space, placed at t_min; `noise` is an ItemNoise of these items."""
