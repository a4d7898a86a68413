"""DINOv2 features, by timm's vision transformers, with weights from a file or, where asked for, the network."""

from typing import Literal, final

import torch
from torch import Tensor

from diffcli.errors import CheckpointError, UsageError
from diffcli.metrics.features.base import FeatureNetwork, check_image, unit
from diffcli.metrics.features.weights import first_words, read_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the weights expect
SIDE = 224
CHUNK = 32  # images that are read at once


@final
class DINOv2(FeatureNetwork):
    """The class token after the last norm of a ViT/14 trained by DINOv2 (Oquab et al. 2023, arXiv:2304.07193).

    size: small (D = 384), base (768), large (1,024; what Stein et al. 2023, arXiv:2306.04675, judge samples by), giant (1,536).
    Images in [0, 1], grey repeated to RGB, are resized to 224 x 224 (bicubic, antialiased, clipped) and normalised by
    ImageNet's mean and std; the position embedding is resampled to that size by timm.
    weights: a file (timm's .safetensors, or the .pth of its authors).  download: fetch them from the Hugging Face hub.
    Raises UsageError where library or weights are missing, CheckpointError for a file that does not fit.
    """

    name = "dinov2"

    def __init__(
        self,
        weights: str | None = None,
        download: bool = False,
        size: Literal["small", "base", "large", "giant"] = "large",
    ):
        super().__init__()
        self.weights, self.download, self.size = weights, download, size

    def load(self) -> None:
        try:
            import timm
        except ImportError:
            raise UsageError("features=dinov2 needs the library timm", 'pip install "diffcli[metrics]"') from None
        if self.weights is None and not self.download:
            raise UsageError(
                "features=dinov2 has no weights: diffcli does not bring them",
                "features.weights=FILE (.safetensors or .pth), or features.download=true",
            )
        how = {} if self.weights is None else {"pretrained_cfg_overlay": {"state_dict": read_weights(self.weights)}}
        try:
            own = timm.create_model(
                f"vit_{self.size}_patch14_dinov2", pretrained=True, num_classes=0, img_size=SIDE, **how
            )
        except Exception as error:
            # the hub's client and timm's filters of a foreign file raise whatever fails inside them
            reason = first_words(error)
            if self.weights is None:
                raise UsageError(
                    f"features=dinov2: its weights could not be downloaded ({reason})", "features.weights=FILE"
                ) from error
            raise CheckpointError(f"{self.weights} is no DINOv2 of size {self.size} ({reason})") from error
        self.network = own.requires_grad_(False).eval()

    def compute(self, x: Tensor, levels: int | None) -> tuple[Tensor, None]:
        check_image(x, levels, self.name)
        mean, std = (x.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (MEAN, STD))
        parts = []
        for part in unit(x, levels).float().expand(-1, 3, -1, -1).split(CHUNK):
            sized = torch.nn.functional.interpolate(part, (SIDE, SIDE), mode="bicubic", antialias=True)
            parts.append(self.network((sized.clamp(0, 1) - mean) / std))
        return torch.cat(parts), None

    def preprocessing(self) -> dict[str, str]:
        return {
            "range": "0..1, then ImageNet's mean and std",
            "resize": "224x224, bicubic, antialiased",
            "channels": "RGB, grey repeated",
        }

    def settings(self) -> dict:
        return {"size": self.size}
