"""The 8x8 digits that come with scikit-learn: real images that need no download."""

from functools import cached_property
from typing import final

import torch

from diffcli.data.base import Data, TensorItems
from diffcli.data.transform import Levels


@final
class Digits(Data):
    """1,797 handwritten digits `(1, 8, 8)`, values 0..16, 10 classes (Alpaydin & Kaynak 1998, UCI; scikit-learn).

    Item i is in "test" where i % 10 = 0, in "val" where i % 10 = 5, else in "train".
    """

    classes = 10
    class_names = [str(digit) for digit in range(10)]
    units = "digits 0..16"
    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.transform = Levels(17)

    @cached_property
    def _all(self) -> TensorItems:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
        return TensorItems(x, torch.from_numpy(bunch.target))

    def _load(self, name: str) -> TensorItems:
        if name == "all":
            return self._all
        rest = torch.arange(len(self._all)) % 10
        keep = {"test": rest == 0, "val": rest == 5, "train": (rest != 0) & (rest != 5)}[name]
        return TensorItems(self._all.x[keep], self._all.y[keep])
