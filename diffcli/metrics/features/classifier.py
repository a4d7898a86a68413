"""The features of a classifier that diffcli trained on the data set: `diffcli train task=classifier`."""

from typing import Literal, final

from torch import Tensor

from diffcli.errors import UsageError
from diffcli.metrics.features.base import FeatureNetwork


@final
class ClassifierFeatures(FeatureNetwork):
    """What the last layer reads, (B, D), and the logits (B, C), of clean items in the model space of the classifier's data.

    Items are rounded to their level and put at its centre, as `transform.encode` does; nothing is resized.
    ckpt: its checkpoint.  weights: averaged or raw.  trust: as of every command.
    Raises UsageError without a checkpoint, and for items of another shape or other levels; CheckpointError for a bad one.
    """

    name = "classifier"

    def __init__(self, ckpt: str | None = None, weights: Literal["ema", "raw"] = "ema", trust: str | None = None):
        super().__init__()
        self.ckpt, self.weights, self.trust = ckpt, weights, trust

    def load(self) -> None:
        from diffcli.checkpoint import load_classifier  # it brings Hydra, which other features do not need

        if self.ckpt is None:
            raise UsageError(
                "features=classifier needs the checkpoint of one",
                "diffcli train task=classifier data=…, then features.ckpt=PATH",
            )
        self.network = load_classifier(self.ckpt, self.weights, self.trust)
        self.class_names = self.network.class_names

    def compute(self, x: Tensor, levels: int | None) -> tuple[Tensor, Tensor]:
        own, trained = self.network, self.network.transform.levels
        if trained != levels:
            kinds = ["continuous items" if k is None else f"items of {k} levels" for k in (trained, levels)]
            raise UsageError(
                f"{self.ckpt} was trained on {kinds[0]}, these are {kinds[1]}", "features=pixels, or another ckpt"
            )
        if tuple(x.shape[1:]) != tuple(own.shape):
            raise UsageError(
                f"{self.ckpt} takes items of shape {tuple(own.shape)}, these have {tuple(x.shape[1:])}",
                "features=pixels, or another ckpt",
            )
        return own.read(own.transform.encode(x if levels is None else x.round()))

    def preprocessing(self) -> dict[str, str]:
        return {"range": "model space of its data", "resize": "none", "channels": "as they are"}
