"""The guidance that a command asks for, put around the model."""

import torch

from diffcli.commands.build import build
from diffcli.commands.model import Model


def guide(model: Model, device: torch.device) -> None:
    """Wrap `model.denoiser` as the settings `guidance` say.  Raises UsageError for what does not go with the model."""
    node = model.config.get("guidance")
    if node:
        model.denoiser = build(node, "guidance", inner=model.denoiser).to(device)
