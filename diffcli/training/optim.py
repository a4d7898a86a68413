"""The optimiser and its learning rate as a function of the step alone, so that nothing of it is stored."""

import math
from typing import Literal

import torch

METHODS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


class Optim:
    """Adam or AdamW; `lr` rises linearly over `warmup` steps and then stays, or falls as a cosine to 0 at the last step.

    Raises ValueError for a value out of range.
    """

    def __init__(
        self,
        method: Literal["adamw", "adam"] = "adamw",
        lr: float = 2e-3,
        betas: list[float] | tuple[float, ...] = (0.9, 0.99),
        weight_decay: float = 0.01,
        warmup: int = 100,
        decay: Literal["cosine", "none"] = "cosine",
    ):
        for name, value, fine in (
            ("lr", lr, lr > 0),
            ("betas", betas, len(betas) == 2 and all(0 <= b < 1 for b in betas)),
            ("weight_decay", weight_decay, weight_decay >= 0),
            ("warmup", warmup, warmup >= 0),
        ):
            if not fine:
                rule = {"lr": "above 0", "betas": "two numbers in [0, 1)"}.get(name, "at least 0")
                raise ValueError(f"{name} must be {rule}, got {value}")
        self.method, self.lr, self.betas, self.weight_decay = METHODS[method], lr, tuple(betas), weight_decay
        self.warmup, self.decay = warmup, decay

    def build(self, parameters, fused: bool = True) -> torch.optim.Optimizer:
        """The optimiser of these parameters; fused is faster, but unscales float16 gradients in the step itself."""
        return self.method(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of optimiser step `step` = 0, 1, …"""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "none":
            return self.lr * rise
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
