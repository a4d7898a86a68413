"""Classifiers of the labels of clean or noised items, and the loss that they are trained with."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffcli.diffusion.loss.dsm import check_noise
from diffcli.diffusion.numeric import match, require, spread
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.time_sampling import time_samplers


class Classifier(nn.Module):
    """`p(y | x)`, or with an SDE `p(y | x_t, t)` at every level of it: `softmax(logits)` of `F(c_in x_t, c_noise)`.

    The network maps `(x (B, *S), c_noise (B,))` to features (B, D) and logits (B, C); `c_in = 1 / sqrt(alpha^2 + sigma^2)`
    and `c_noise = 1000 t` as of a denoiser, 1 and 0 without an SDE.  x is in model space, t float64 () or (B,); without t
    the items are clean, which a classifier with an SDE takes for its lowest level.  Results have x's dtype.
    Raises ValueError for items of another shape, and for a t where there is no SDE.
    Dhariwal & Nichol 2021, sec. 4, arXiv:2105.05233.

    transform: from source units to model space, put here with the trained weights (`checkpoint.load_classifier`), as is
    data, the node of the data set it was trained on.
    """

    transform: Any = None
    data: dict | None = None

    def __init__(self, network: nn.Module, shape: list[int], class_names: list[str], sde: SDE | None = None):
        super().__init__()
        require(len(class_names) > 1, f"a classifier needs at least 2 classes, got {len(class_names)}")
        self.network, self.sde = network, sde
        self.shape, self.class_names = tuple(shape), list(class_names)

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.class_names)

    def read(self, x: Tensor, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, C) of one evaluation; differentiable by x."""
        require(
            tuple(x.shape[1:]) == self.shape,
            f"the classifier takes items of shape {self.shape}, these have {tuple(x.shape[1:])}",
        )
        require(t is None or self.sde is not None, "a classifier of clean items takes no t: task.noise=true trains one")
        weight = next(self.network.parameters(), x)
        if self.sde is None:
            inputs, c_noise = x.to(weight.dtype), x.new_zeros(len(x), dtype=weight.dtype)
        else:
            t = torch.tensor(self.sde.t_min, dtype=torch.float64) if t is None else t
            c_in = torch.rsqrt(self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)
            inputs = (match(c_in, x) * x).to(weight.dtype)
            c_noise = spread(1000 * t, inputs)
        found = self.network(inputs, c_noise)
        require(
            isinstance(found, tuple), "the network of a classifier returns its features and its logits, two tensors"
        )
        features, logits = (a.to(x.dtype) for a in found)
        return features, logits

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """The logits (B, C)."""
        return self.read(x, t)[1]

    def features(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """The features (B, D), what the logits are read from."""
        return self.read(x, t)[0]

    def log_prob(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """`log p(y | x_t, t)` of every label (B, C), in nats."""
        return torch.log_softmax(self(x, t), dim=1)


class CrossEntropy(nn.Module):
    """`-log p(y | x_t, t)` at one drawn level an item, `x_t = alpha x0 + sigma eps`; of a classifier without SDE `-log p(y | x0)`.

    Its minimum over all functions is the posterior of the labels at each level.  time: see `DSM`; lognormal draws
    log(sigma/alpha) with p_mean and p_std.  Raises ValueError for another name or a value out of range.
    """

    def __init__(
        self,
        time: Literal["uniform", "levels", "lognormal", "importance"] = "uniform",
        T: int = 1000,
        p_mean: float = -1.2,
        p_std: float = 1.2,
    ):
        super().__init__()
        every_time = time_samplers(T, p_mean, p_std)
        require(time in every_time, f"time must be one of {', '.join(every_time)}, got {time}")
        self.time = every_time[time]

    def setup(self, classifier: Classifier) -> None:
        """Raises ValueError for an SDE on which no times can be drawn, or which has no noise."""
        if classifier.sde is not None:
            check_noise(classifier.sde)
            self.time.setup(classifier.sde)

    def forward(self, classifier: Classifier, x0: Tensor, label: Tensor, draw) -> tuple[Tensor, Tensor]:
        """x0 (B, *S), label (B,) -> the loss of each item (B,), and whether its label is the likeliest (B,) bool."""
        importance, t, x = torch.ones((), dtype=torch.float64), None, x0
        if classifier.sde is not None:
            t, importance = self.time(classifier.sde, len(x0), draw)
            x = classifier.sde.perturb(x0, t, draw.normal("eps", x0.shape, x0.dtype))
        logits = classifier(x, t)
        loss = nn.functional.cross_entropy(logits, label, reduction="none")
        return importance.to(loss) * loss, logits.argmax(1) == label

    def warning(self, value: float) -> str | None:
        """No value of the loss shows that something is amiss."""
        return None
