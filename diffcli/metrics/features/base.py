"""What every feature network is, and what it takes: images on their levels, one sentence for anything else."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from diffcli.errors import NumericalError, UsageError


class FeatureNetwork(nn.Module, ABC):
    """Items in source units -> features, and logits of classes where it has any.

    name: what figures are labelled by.  dim: of the features, and classes: of the logits (0 where there are none), both
    known after `setup`, before which it can read nothing.  class_names: of the logits, where it knows them.
    """

    name: str
    dim: int | None = None
    classes: int | None = None
    class_names: list[str] | None = None
    ready: bool = False  # loaded

    @property
    def distance_name(self) -> str:
        """What the Fréchet distance between its features is called: FID for Inception features alone."""
        return f"Frechet distance ({self.name})"

    @final
    def setup(self, shape: Sequence[int], levels: int | None, device: torch.device | str = "cpu") -> None:
        """Load it, move it to a device and read one blank item of shape S, so that dim and classes are known.

        Raises UsageError with a sentence where items of that shape do not fit, or a file or a library is missing.
        """
        if not self.ready:
            self.load()
            self.ready = True
        self.to(device)
        features, logits = self.read(torch.zeros(1, *shape), levels)
        self.dim, self.classes = features.shape[1], 0 if logits is None else logits.shape[1]

    @final
    @torch.no_grad()
    def read(self, x: Tensor, levels: int | None) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) and logits (B, C), or None, of x (B, *S) in source units; float64, on the CPU.

        levels: values that a dimension of x takes, 0..levels-1, or None where x is continuous.
        Raises NumericalError for an item that is not finite and for features that are not, UsageError for one outside its
        levels and for a shape that does not fit.
        """
        x = torch.as_tensor(x)
        x = x if x.is_floating_point() else x.float()
        check_items(x, levels)
        # without tf32, whose ten bits would make the features depend on the device
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            features, logits = self.eval().compute(x.to(self.device), levels)
        features = _vectors(features, len(x), f"features={self.name}").double().cpu()
        bad = ~features.isfinite().all(dim=1)
        if bad.any():
            raise NumericalError(
                f"features={self.name} gives features that are not finite ({int(bad.sum())} of {len(x)})"
            )
        return features, None if logits is None else _vectors(logits, len(x), "its logits").double().cpu()

    @final
    def features(self, x: Tensor, levels: int | None) -> Tensor:
        """The features alone, (B, D) float64 on the CPU; raises as `read`."""
        return self.read(x, levels)[0]

    @final
    def logits(self, x: Tensor, levels: int | None) -> Tensor | None:
        """The logits alone, (B, C) float64 on the CPU, None where the network has none; raises as `read`."""
        return self.read(x, levels)[1]

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU where it has none."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @final
    def identity(self) -> str:
        """A hex hash of its kind, settings and weights: two that agree give the same features."""
        return digest(type(self).__qualname__, repr(self.settings()), self.state_dict())

    def load(self) -> None:
        """Read its files; a constructor only checks its arguments, so that one can be built where they are missing."""

    @abstractmethod
    def compute(self, x: Tensor, levels: int | None) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) and logits (B, C) or None of checked items x (B, *S) floating in source units, on its device."""

    @abstractmethod
    def preprocessing(self) -> dict[str, str]:
        """What is done to an item before the network sees it, as fields of the protocol."""

    def settings(self) -> dict:
        """What else its features depend on, beside its weights."""
        return {}


def check_items(x: Tensor, levels: int | None, first: int = 0) -> None:
    """Raise NumericalError for an item of x (B, *S) that is not finite, UsageError for one outside its levels.

    first: the number of x[0].  Half a level beyond the ends still rounds to them.
    """
    flat = x.flatten(1)
    bad = ~flat.isfinite().all(dim=1)
    if bad.any():
        raise NumericalError(
            f"item {first + int(bad.nonzero()[0])} is not finite ({int(bad.sum())} of its batch of {len(x)} are not)"
        )
    if levels is None:
        return
    out = ((flat < -0.5) | (flat > levels - 0.5)).any(dim=1)
    if out.any():
        item = int(out.nonzero()[0])
        low, high = flat[item].min().item(), flat[item].max().item()
        raise UsageError(f"item {first + item} has values from {low:g} to {high:g}, outside the levels 0..{levels - 1}")


def on_levels(x: Tensor, levels: int | None) -> Tensor:
    """Samples x as they would be saved: rounded to the levels 0..levels-1 and clipped to them; as they are without levels."""
    return x if levels is None else x.round().clamp(0, levels - 1)


def unit(x: Tensor, levels: int | None) -> Tensor:
    """`x / (levels - 1)`, rounded to its level first, in [0, 1]; x itself where it has no levels."""
    return x if levels is None else on_levels(x, levels) / (levels - 1)


def check_image(x: Tensor, levels: int | None, name: str) -> None:
    """Raise UsageError unless x (B, *S) is of grey or RGB images with levels."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"features={name} reads images (1 or 3, H, W), the items have shape {tuple(x.shape[1:])}",
            "features=pixels reads items of any shape",
        )
    if levels is None:
        raise UsageError(f"features={name} reads images with levels, these items are continuous", "features=pixels")


def digest(*parts) -> str:
    """A hex hash of texts, numbers, tensors and state dicts: of their bytes, dtypes and shapes."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        for name, value in part.items() if isinstance(part, dict) else [("", part)]:
            if isinstance(value, Tensor):
                value = value.detach().cpu().contiguous()
                found.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
                found.update(value.flatten().view(torch.uint8).numpy() if value.numel() else b"")
            else:
                found.update(repr((name, value)).encode())
    return found.hexdigest()


def _vectors(x, count: int, what: str) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != count:
        form = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"{what}: (B, D) was expected for {count} items, not {form}")
    return x.flatten(1)
