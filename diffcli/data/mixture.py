"""Gaussian mixtures: data whose density and score are known at every noise level."""

from functools import cached_property
from typing import Literal, final

import torch

from diffcli.data.base import Data, TensorItems, check_count, concatenate, split_seed
from diffcli.data.mixture_file import builtin_mixture, load_mixture
from diffcli.data.transform import Identity
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.perturbed import Perturbed
from diffcli.diffusion.sde import SDE
from diffcli.errors import UsageError


@final
class Mixture(Data):
    """n draws `(d,)` float64 for each split, independent of each other; y is the component drawn from, classes = K.

    name: a built-in mixture (`builtin_mixture` lists them).  file: .npz with weights `(K,)`, means `(K, d)` and covs
    `(K, d, d)`, taken instead of name where given.  Raises UsageError for n < 1, seed < 0 or another name, and when
    loading for an unfit file.
    """

    units = "points"

    def __init__(
        self,
        name: Literal["four", "two", "grid", "ring", "line", "gaussian", "sixteen"] = "four",
        file: str | None = None,
        n: int = 10000,
        seed: int = 0,
    ):
        super().__init__()
        check_count("n", n, 1)
        check_count("seed", seed, 0)
        self.name, self.file, self.n, self.seed = name, file, n, seed
        self.transform = Identity()
        if file is None:
            builtin_mixture(name)

    @cached_property
    def mixture(self) -> GaussianMixture:
        """Give the law itself, in source units, which are also the model's."""
        return load_mixture(self.name, self.file)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mixture.means.shape[1:])

    @property
    def classes(self) -> int:
        return len(self.mixture.weights)

    @property
    def class_names(self) -> list[str]:
        return component_names(self.classes)

    def _load(self, name: str) -> TensorItems:
        if name == "all":
            return concatenate([self.split(part) for part in ("train", "val", "test")])
        generator = torch.Generator().manual_seed(split_seed(self.seed, name))
        return TensorItems(*self.mixture.sample(self.n, generator))


def component_names(count: int) -> list[str]:
    """Names of the components of a mixture, in order."""
    return [f"component {k}" for k in range(count)]


def exact(
    sde: SDE, file: str | None = None, data: Data | None = None, error: float = 0.0, error_seed: int = 0
) -> Exact | Perturbed:
    """Build the exact denoiser of a mixture: that of `file` (.npz) if given, else that of the data.

    error: the size of a known error of its eps, `Perturbed`'s, drawn by error_seed.
    Raises UsageError where there is no mixture, and for an unfit file.
    """
    if file is None and not isinstance(data, Mixture):
        raise UsageError("network=exact needs data=mixture or network.file=mix.npz")
    mixture = data.mixture if file is None else load_mixture(None, file)
    truth = Exact(sde, mixture)
    return Perturbed(truth, mixture.means.shape[1], error, error_seed) if error else truth
