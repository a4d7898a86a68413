"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision's loaders."""

from abc import abstractmethod
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from diffcli.data.base import Data, TensorItems, check_count, concatenate
from diffcli.data.transform import Levels
from diffcli.errors import UsageError


class TorchvisionData(Data):
    """8-bit images `(C, H, W)` of a torchvision data set with its own training and test sets.

    root: folder that torchvision reads.  download: fetch what is missing.
    val: how many of the last items of the training set are "val" instead of "train"; 0 makes "val" the test set.
    Raises UsageError for val < 0, and when loading for missing or damaged files.
    """

    units = "pixels 0..255"
    title: str
    fix = "data.root=FOLDER that holds it, or data.download=true"

    def __init__(self, root: str, download: bool, val: int):
        super().__init__()
        check_count("val", val, 0)
        self.root, self.download, self.val = root, download, val
        self.classes = len(self.class_names)
        self.transform = Levels(256)
        self._loaded: dict[bool, TensorItems] = {}

    @abstractmethod
    def _open(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Read x `(N, C, H, W)` uint8 and y `(N,)` of the training or the test set."""

    def _load(self, name: str) -> TensorItems:
        if name == "all":
            return concatenate([self._whole(True), self._whole(False)])
        if name == "test" or (name == "val" and self.val == 0):
            return self._whole(False)
        whole = self._whole(True)
        cut = len(whole) - self.val
        if cut < 1:
            raise UsageError(f"data.val={self.val} leaves no training items: there are {len(whole)} in all")
        part = slice(0, cut) if name == "train" else slice(cut, None)
        return TensorItems(whole.x[part], whole.y[part])

    def _whole(self, train: bool) -> TensorItems:
        if train not in self._loaded:
            try:
                self._loaded[train] = TensorItems(*self._open(Path(self.root).expanduser(), train))
            # What torchvision raises for files that are missing, damaged or cut short, and for a failed download.
            except (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError) as error:
                reason = "could not be downloaded to" if self.download else "is missing, incomplete or damaged in"
                raise UsageError(f"{self.title} {reason} data.root={self.root}", self.fix) from error
        return self._loaded[train]


class _IdxData(TorchvisionData):
    shape = (1, 28, 28)
    loader: str

    def __init__(self, root: str = "data", download: bool = False, val: int = 5000):
        super().__init__(root, download, val)

    def _open(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        import torchvision

        items = getattr(torchvision.datasets, self.loader)(root, train=train, download=self.download)
        return items.data[:, None], items.targets


@final
class MNIST(_IdxData):
    """60,000 + 10,000 handwritten digits `(1, 28, 28)`, 0..255, 10 classes, in `root/MNIST/raw` (LeCun et al. 1998)."""

    title, loader = "MNIST", "MNIST"
    class_names = [str(digit) for digit in range(10)]


@final
class FashionMNIST(_IdxData):
    """60,000 + 10,000 pictures of clothes `(1, 28, 28)`, 0..255, 10 classes, in `root/FashionMNIST/raw` (Xiao et al.
    2017)."""

    title, loader = "Fashion-MNIST", "FashionMNIST"
    class_names = "T-shirt/top,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(",")


@final
class CIFAR10(TorchvisionData):
    """50,000 + 10,000 photographs `(3, 32, 32)`, 0..255, 10 classes, in `root/cifar-10-batches-py` (Krizhevsky 2009).

    batches: how many of the five training batches of 10,000 are there, the first ones.  UsageError outside 1..5.
    """

    title = "CIFAR-10"
    fix = TorchvisionData.fix + "; data.batches=K where only K of the five training batches are there"
    class_names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    shape = (3, 32, 32)

    def __init__(self, root: str = "data", download: bool = False, val: int = 5000, batches: int = 5):
        super().__init__(root, download, val)
        if not 1 <= batches <= 5:
            raise UsageError(f"data.batches={batches} is outside 1..5")
        self.batches = batches

    def _open(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        import torchvision

        class Part(torchvision.datasets.CIFAR10):
            # torchvision refuses a folder that lacks any file of its list.
            train_list = torchvision.datasets.CIFAR10.train_list[: self.batches]

        items = Part(root, train=train, download=self.download)
        return torch.from_numpy(items.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(items.targets)
