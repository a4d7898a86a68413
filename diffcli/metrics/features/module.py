"""Any network of the user's as a feature network."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from diffcli.errors import UsageError
from diffcli.metrics.features.base import FeatureNetwork, digest, unit
from diffcli.metrics.features.weights import first_words, put_weights, read_weights


class Yours:
    """Stands in the place of the user's module until one is named."""


@final
class ModuleFeatures(FeatureNetwork):
    """`f(x)` of a module: x (B, *S) float32 in [0, 1] (items without levels: as they are) -> (B, D); nothing is resized.

    module: an nn.Module, or a function.  method: what to call of it, by default `features` where it has one, else itself.
    logits: whether calling the module itself gives logits of classes, for the Inception Score.
    weights: a file (.safetensors, or .pt with tensors alone) to load into it.  label: what figures are labelled by, its class's
    name by default.  Raises UsageError for a result that is not (B, D), and with the module's own words where it fails.
    """

    name = "module"

    def __init__(
        self,
        module: Any = None,
        weights: str | None = None,
        method: str | None = None,
        logits: bool = False,
        label: str | None = None,
    ):
        super().__init__()
        self.network, self.weights, self.method, self.with_logits = module, weights, method, logits
        if module is not None:
            self.name = label or getattr(module, "__name__", type(module).__name__)

    def load(self) -> None:
        if not callable(self.network):
            raise UsageError(
                "features=module needs your own module", "features.module._target_=mypackage.MyNet, on PYTHONPATH"
            )
        if self.weights is not None:
            if not isinstance(self.network, nn.Module):
                raise UsageError(f"features.weights={self.weights}: {self.name} is no nn.Module to load them into")
            put_weights(self.network, read_weights(self.weights), self.weights)
        if isinstance(self.network, nn.Module):
            self.network.requires_grad_(False)

    def _reader(self) -> Callable[[Tensor], Tensor]:
        name = self.method or ("features" if callable(getattr(self.network, "features", None)) else None)
        if name is None:
            return self.network
        found = getattr(self.network, name, None)
        if not callable(found):
            raise UsageError(f"features.method={name}: {self.name} has no such method")
        return found

    def compute(self, x: Tensor, levels: int | None) -> tuple[Tensor, Tensor | None]:
        x, read = unit(x, levels).float(), self._reader()
        try:
            return read(x), self.network(x) if self.with_logits else None
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            shape = tuple(x.shape[1:])
            raise UsageError(f"{self.name} cannot read items of shape {shape}: {first_words(error)}") from error

    def preprocessing(self) -> dict[str, str]:
        return {"range": "0..1 (items without levels: as they are)", "resize": "none", "channels": "as they are"}

    def settings(self) -> dict:
        """Its name and method, and the file that defines it: other code is another network."""
        kind = type(self.network) if isinstance(self.network, nn.Module) else self.network
        try:
            source = Path(inspect.getsourcefile(kind) or "").read_text()
        except (TypeError, OSError):
            source = ""
        own = {k: v for k, v in vars(self.network).items() if isinstance(v, (int, float, str, bool))}
        return {
            "of": getattr(kind, "__qualname__", repr(kind)),
            "method": self.method,
            "logits": self.with_logits,
            "values": sorted(own.items()),
            "source": digest(source),
        }
