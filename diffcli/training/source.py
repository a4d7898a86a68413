"""The items of a second data set that a training starts from, in the place of noise."""

import torch
from torch import Tensor

from diffcli.data.base import Data


class Source:
    """`(x0, draw, training) -> x1 (B, *S)`: items of the data in their own model space, drawn uniformly and independently.

    They are of the train split while training, of val else, and a function of `draw` alone; dequantize: whether items on
    levels are given uniform noise within them, as the data are.
    """

    def __init__(self, data: Data, dequantize: bool = True):
        self.data, self.dequantize = data, dequantize and data.transform.levels is not None

    def __call__(self, x0: Tensor, draw, training: bool) -> Tensor:
        items = self.data.split("train" if training else "val")
        u = draw.uniform("source", (len(x0),), torch.float64)
        x, _ = items.__getitems__((u.cpu() * len(items)).long())
        x = x.to(x0.device)
        within = draw.uniform("dequantize source", x.shape) if self.dequantize else None
        return self.data.transform.encode(x, within).to(x0.dtype)
