"""The items themselves as features: no network, and closed forms to check everything else with."""

from typing import final

from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.features.base import FeatureNetwork, unit

MOST = 8192  # dimensions: a covariance in float64 then takes 0.5 GB


@final
class Pixels(FeatureNetwork):
    """`x / (levels - 1)` in [0, 1] flattened, D = d; items without levels (points, arrays) as they are.

    Raises UsageError for items of more than 8,192 dimensions.
    """

    name = "pixels"

    def compute(self, x: Tensor, levels: int | None) -> tuple[Tensor, None]:
        flat = x.flatten(1)
        if flat.shape[1] > MOST:
            raise UsageError(
                f"features=pixels: the covariance of {flat.shape[1]} dimensions is too large (at most {MOST})",
                "a feature network: features=inception|dinov2|classifier|module",
            )
        return unit(flat.double(), levels), None

    def preprocessing(self) -> dict[str, str]:
        return {"range": "0..1 (items without levels: as they are)", "resize": "none", "channels": "as they are"}
