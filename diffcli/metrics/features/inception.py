"""The Inception-v3 of the FID, by torch-fidelity's extractor, with weights from a file or, where asked for, the network."""

import io
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from diffcli.errors import CheckpointError, UsageError
from diffcli.metrics.features.base import FeatureNetwork, check_image, unit
from diffcli.metrics.features.weights import first_words, read_weights, sha256

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the 95,628,359 bytes of the TensorFlow weights
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
CHUNK = 32  # images at 299 x 299 that are read at once: about 0.5 GB


@final
class Inception(FeatureNetwork):
    """The 2,048 features of the last pooling of TensorFlow's Inception-v3 of 2015, and its 1,008 logits without their bias.

    Images are brought to 8 bits, grey is repeated to RGB, and resized to 299 x 299 by TensorFlow 1's bilinear rule without
    antialiasing: what the FID of Heusel et al. 2017 and the Inception Score of Salimans et al. 2016 do.

    weights: a file (.pth of torch-fidelity or pytorch-fid, .safetensors).  download: fetch it if it is not in torch's hub folder.
    Figures are called FID where the file is the published one (by its SHA-256), by the network's name otherwise.
    Raises UsageError where library or weights are missing, CheckpointError for a file that does not fit.
    """

    name = "inception"

    def __init__(self, weights: str | None = None, download: bool = False):
        super().__init__()
        self.weights, self.download = weights, download
        self.published = False

    @property
    def distance_name(self) -> str:
        return "FID" if self.published else "Frechet distance (Inception, other weights)"

    def load(self) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UsageError(
                "features=inception needs the library torch-fidelity", 'pip install "diffcli[metrics]"'
            ) from None
        path = self._file()
        weights = read_weights(path)
        self.published = sha256(path) == SHA256
        # saved again: the extractor unpickles what it is given, and these are tensors for certain
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        buffer.seek(0)
        try:
            own = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], buffer)
        except RuntimeError:
            raise CheckpointError(
                f"{path} holds no weights of this Inception-v3 ({len(weights)} tensors, the first is {next(iter(weights))})"
            ) from None
        self.network = own.requires_grad_(False).eval()

    def _file(self) -> Path:
        if self.weights is not None:
            return Path(self.weights).expanduser()
        path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if path.is_file():
            return path
        if not self.download:
            raise UsageError(
                "features=inception has no weights: they are a file of 96 MB that diffcli does not bring",
                f"features.weights=FILE ({FILE}), or features.download=true",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
        except (OSError, RuntimeError, ValueError) as error:  # no network, a refusal, another content
            raise UsageError(
                f"features=inception: its weights could not be downloaded ({first_words(error)})",
                f"features.weights=FILE ({FILE})",
            ) from None
        return path

    def compute(self, x: Tensor, levels: int | None) -> tuple[Tensor, Tensor]:
        check_image(x, levels, self.name)
        x = (unit(x, levels) * 255).round().to(torch.uint8)
        x = x.expand(-1, 3, -1, -1)
        parts = [self.network(part) for part in x.split(CHUNK)]
        features, logits = (torch.cat(found) for found in zip(*parts, strict=True))
        return features, logits

    def preprocessing(self) -> dict[str, str]:
        return {
            "range": "8 bits, then (x - 128) / 128",
            "resize": "299x299, bilinear as TensorFlow 1, no antialiasing",
            "channels": "RGB, grey repeated",
        }
