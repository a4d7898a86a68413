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
        self._kept: dict[tuple, Tensor] = {}  # the items of a split on a device

    def __call__(self, x0: Tensor, draw, training: bool) -> Tensor:
        items = self.data.split("train" if training else "val")
        u = draw.uniform("source", (len(x0),), torch.float64)
        index, held = (u * len(items)).long(), items.held()
        if held is None:
            x = items.__getitems__(index.cpu())[0].to(x0.device)
        else:  # where the training is, so that it need not wait for what it draws
            key = (training, x0.device)
            if key not in self._kept:
                self._kept[key] = held[0].to(x0.device)
            x = self._kept[key][index]
        within = draw.uniform("dequantize source", x.shape) if self.dequantize else None
        return self.data.transform.encode(x, within).to(x0.dtype)
