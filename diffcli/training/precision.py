"""Where a training computes in less than float32: in the network alone."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class NetworkAlone:
    """The low precision of a trainer's `16-mixed` or `bf16-mixed`, for the forward pass of one network.

    Lightning's own holds for a whole step: a target that is a product of matrices, or a learned weight of the loss, would be
    rounded to bfloat16 too.  Outside a step (previews) the network computes in its own precision, as the loss does where it
    says `full_precision`.
    """

    def __init__(self, dtype: torch.dtype, device: str):
        self.dtype, self.device, self.on = dtype, device, False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """In the place of Lightning's context."""
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def wrap(self, network: nn.Module) -> None:
        """Let this network compute so within a step."""
        forward = network.forward

        def in_low_precision(*args, **kwargs):
            with torch.autocast(self.device, self.dtype, enabled=self.on, cache_enabled=False):
                return forward(*args, **kwargs)

        network.forward = in_low_precision


def narrow(trainer, module) -> None:
    """Keep the trainer's mixed precision, if it has one, inside the module's network."""
    plugin = trainer.strategy.precision_plugin
    if not plugin.precision.endswith("-mixed"):
        return
    low = NetworkAlone(torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16, plugin.device)
    if not getattr(module.loss, "full_precision", False):
        low.wrap(module.model.network)
    plugin.forward_context = low.step
