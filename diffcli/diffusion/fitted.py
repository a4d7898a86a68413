"""Denoisers that are fitted in closed form, in place of training."""

from abc import abstractmethod

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import TrainingSet


class Fitted(Denoiser):
    """A denoiser without weights to train: `fit` sets its persistent buffers, whose shapes its arguments determine.

    They are float64 and stay so under every cast, as all that is computed with them.
    """

    def _apply(self, fn, recurse=True):
        return super()._apply(lambda a: a.to(fn(a).device), recurse)

    @abstractmethod
    def fit(self, data: TrainingSet, seed: int = 0) -> dict:
        """Fit to the training items; what was found goes into the record of the run.

        Raises ValueError where the data do not allow it.
        """
