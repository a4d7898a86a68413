"""What is diagnosed: a model, the items it is measured on, what is known of their density, and the random numbers."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffcli.diagnosis.levels import Levels
from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.kde import KDE
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.sde import SDE
from diffcli.randomness import key

MOST = 10_000  # training items that a kernel density estimate is made of


@dataclass
class Subject:
    """A model and its data in model space.

    other: the same model with the other weights (raw where the model's are ema), None where it has but one set; names: what
    "model" and, where there is one, "other" are called.
    held_out, train: items (N, *S), of which the first n are measured on.  exact_up_to: dimensions up to which Jacobians are
    taken whole and all is computed in float64; beyond it by `probes` random vectors in the model's own precision.
    """

    denoiser: Denoiser
    other: Denoiser | None
    names: dict[str, str]
    held_out: Tensor
    train: Tensor
    data: TrainingSet
    n: int
    times: int
    probes: int
    exact_up_to: int
    batch_size: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    kept: dict = field(default_factory=dict)  # what several checks share
    begun: int = 0

    def __post_init__(self):
        self.begun = evaluations(self.denoiser)

    @property
    def sde(self) -> SDE:
        return self.denoiser.sde

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.held_out.shape[1:])

    @property
    def d(self) -> int:
        return math.prod(self.shape)

    @property
    def small(self) -> bool:
        """Whether Jacobians are taken whole."""
        return self.d <= self.exact_up_to

    @property
    def x0(self) -> Tensor:
        """The items measured on, (n, *S)."""
        return self.held_out[: self.n]

    @property
    def few(self) -> int:
        """Items of the checks that differentiate or integrate."""
        return min(len(self.x0), max(8, self.n // 8))

    @property
    def levels(self) -> Levels:
        return Levels(self.sde, self.times)

    @property
    def few_levels(self) -> Levels:
        """Of the checks that differentiate."""
        return Levels(self.sde, max(3, self.times // 2))

    @property
    def nfe(self) -> int:
        """Evaluations of the network so far, of one item each."""
        return sum(evaluations(d) for d in (self.denoiser, self.other) if d is not None) - self.begun

    @cached_property
    def truth(self) -> Exact | None:
        """The exact denoiser of the data's density, where that is known."""
        mixture: GaussianMixture | None = self.data.mixture
        return None if mixture is None else Exact(self.sde, mixture).to(self.device)

    def kde(self, items: Tensor) -> KDE:
        """The ideal denoiser of these items."""
        found = KDE(self.sde, list(self.shape), len(items))
        found.centres = items.double()
        return found.to(self.device)

    @cached_property
    def training_kde(self) -> KDE:
        return self.kde(self.train[:MOST])

    def generator(self, *purpose) -> torch.Generator:
        return torch.Generator().manual_seed(key(self.seed, "diagnose", *purpose) % 2**63)

    def normal(self, shape, *purpose) -> Tensor:
        """Standard normal, float64 on the CPU, a function of (seed, purpose)."""
        return torch.randn(shape, dtype=torch.float64, generator=self.generator(*purpose))

    def directions(self, n: int, *purpose) -> Tensor:
        """Probes (K, n, *S) with mean `e e^T = I`: the d axes times sqrt(d) where Jacobians are taken whole, else random signs."""
        if self.small:
            axes = math.sqrt(self.d) * torch.eye(self.d, dtype=torch.float64)
            return axes.view(self.d, 1, *self.shape).expand(-1, n, *self.shape)
        bits = torch.randint(0, 2, (self.probes, n, *self.shape), generator=self.generator(*purpose))
        return (2 * bits - 1).double()

    def to(self, x: Tensor) -> Tensor:
        """In the model's dtype and on its device."""
        return x.to(self.dtype).to(self.device)

    def batches(self, n: int, differentiated: bool = False) -> list[slice]:
        """Rows at a time: few where graphs are kept, many where items are small."""
        size = 1024 if self.small else min(self.batch_size, 32) if differentiated else self.batch_size
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]
