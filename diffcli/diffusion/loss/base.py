"""What every loss is, and what it may know of the data."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import GaussianMixture


@dataclass(frozen=True)
class TrainingSet:
    """The training items in model space, read when first asked for.

    items(): all N of them, (N, *S) float32 or float64, level centres where the data have levels.  shape: S.
    levels: number of values a dimension takes, placed at `2 (k + 1/2) / levels - 1`, or None where it is continuous.
    mixture: the density that the items were drawn from, where it is known.
    condition: what a training tells the model of each item: none, label, vector, image.
    """

    items: Callable[[], Tensor]
    shape: tuple[int, ...]
    levels: int | None = None
    mixture: GaussianMixture | None = None
    condition: str = "none"


class Loss(nn.Module):
    """`(denoiser, x0 (B, *S), draw, **cond) -> (B,)`, one value an item, summed over event dimensions.

    All randomness comes from `draw`, which is a function of (seed, step, rank, purpose).  Parameters of a loss are trained
    with the model.  double_backward: whether it differentiates the network twice.  full_precision: whether the network's
    round-off in bfloat16 would be in its way.
    """

    double_backward: bool = False
    full_precision: bool = False

    @abstractmethod
    def forward(self, denoiser: Denoiser, x0: Tensor, draw, **cond) -> Tensor: ...

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        """Called once, before any work: take what the loss needs of the model and the data.

        Raises ValueError where the loss does not go with them, in a sentence that says what would.
        """

    def warning(self, value: float) -> str | None:
        """A sentence where the mean loss a dimension, as training has it now, shows that something is amiss."""
        return None
