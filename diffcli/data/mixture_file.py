"""Gaussian mixtures by name or from a file, with every check that their formulas rely on."""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.diffusion.exact import GaussianMixture
from diffcli.errors import UsageError


def load_mixture(name: str | None, file: str | None) -> GaussianMixture:
    """Load a mixture from `file` (.npz) if given, else the built-in one of that name; float64.

    Raises UsageError for a missing or unreadable file, a missing array, shapes that do not agree, weights that are not
    positive or do not sum to 1 within 1e-6, and a covariance that is not symmetric positive definite.
    """
    if file is not None:
        weights, means, covs = _read(file)
        _check(file, weights, means, covs)
        return GaussianMixture(weights / weights.sum(), means, covs)
    if name is None:
        raise UsageError("a mixture needs a name or a file")
    return GaussianMixture(*builtin_mixture(name))


def builtin_mixture(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Give weights `(K,)`, means `(K, d)` and covariances `(K, d, d)` of a built-in mixture, float64.

    four: 4 unequal anisotropic components in the plane, moments far from those of N(0, I).  two: 2 unequal ones.
    grid: 5 x 5 narrow ones.  ring: 8 narrow ones on a circle.  line: 3 unequal ones, d = 1.
    gaussian: one anisotropic Gaussian in the plane.  sixteen: 3 anisotropic ones, d = 16.  UsageError for another name.
    """
    f64 = torch.float64
    if name == "four":
        means = torch.tensor([[-2.0, -1.0], [1.5, 2.0], [2.5, -1.5], [-1.0, 2.5]], dtype=f64)
        scales = [[0.9, 0.2], [0.6, 0.3], [0.25, 0.8], [0.4, 0.4]]
        covs = torch.stack([_cov2(0.5 + k, *scales[k]) for k in range(4)])
        return torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=f64), means, covs
    if name == "two":
        means = torch.tensor([[-1.5, 0.0], [1.5, 0.5]], dtype=f64)
        return torch.tensor([0.7, 0.3], dtype=f64), means, torch.stack([_cov2(0.6, 0.8, 0.3), _cov2(2.0, 0.5, 0.25)])
    if name == "grid":
        axis = torch.arange(-2, 3, dtype=f64)
        return torch.full((25,), 1 / 25, dtype=f64), torch.cartesian_prod(axis, axis), _round(25, 2, 0.1)
    if name == "ring":
        angle = torch.arange(8, dtype=f64) * (math.pi / 4)
        means = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
        return torch.full((8,), 1 / 8, dtype=f64), means, _round(8, 2, 0.15)
    if name == "line":
        scales = torch.tensor([0.3, 0.6, 0.2], dtype=f64)
        means = torch.tensor([[-2.0], [0.5], [2.0]], dtype=f64)
        return torch.tensor([0.5, 0.3, 0.2], dtype=f64), means, (scales**2)[:, None, None]
    if name == "gaussian":
        mean = torch.tensor([[1.0, -0.5]], dtype=f64)
        return torch.ones(1, dtype=f64), mean, _cov2(0.5, 1.5, 0.3)[None]
    if name == "sixteen":
        k, i = torch.arange(3, dtype=f64)[:, None], torch.arange(16, dtype=f64)
        covs = torch.stack([_reflected(torch.cos(i * (c + 1)), 0.2 + 0.8 * i / 15) for c in range(3)])
        return torch.tensor([0.5, 0.3, 0.2], dtype=f64), 1.5 * torch.cos(2 * k + i), covs
    names = "four, two, grid, ring, line, gaussian, sixteen"
    raise UsageError(f"there is no mixture {name!r}", f"mixtures are {names}; or data.file=mix.npz")


def _cov2(angle: float, long: float, short: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    q = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return q @ torch.diag(torch.tensor([long**2, short**2], dtype=torch.float64)) @ q.T


def _round(components: int, d: int, scale: float) -> Tensor:
    return (scale**2 * torch.eye(d, dtype=torch.float64)).repeat(components, 1, 1)


def _reflected(v: Tensor, scales: Tensor) -> Tensor:
    v = v / v.norm()
    h = torch.eye(len(v), dtype=v.dtype) - 2 * torch.outer(v, v)
    cov = h @ torch.diag(scales**2) @ h
    return (cov + cov.T) / 2


def _read(file: str) -> list[Tensor]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no mixture file {file}")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"{file} is one array, not an .npz archive of weights, means and covs")
        with archive:
            for key in ("weights", "means", "covs"):
                if key not in archive:
                    raise UsageError(f"{file} has no array {key!r}", "weights (K,), means (K, d), covs (K, d, d)")
            arrays = {key: archive[key] for key in ("weights", "means", "covs")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is not a readable .npz archive of numbers") from error
    for key, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UsageError(f"{file}: {key} are not all finite real numbers")
    return [torch.from_numpy(array.astype(np.float64)) for array in arrays.values()]


def _check(file: str, weights: Tensor, means: Tensor, covs: Tensor) -> None:
    shapes = f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, covs {tuple(covs.shape)}"
    fit = means.ndim == 2 and means.numel() > 0
    if not fit or weights.shape != means.shape[:1] or covs.shape != (*means.shape, means.shape[1]):
        raise UsageError(f"{file} has {shapes}, which are not (K,), (K, d), (K, d, d)")
    if (weights <= 0).any():
        k = int((weights <= 0).nonzero()[0])
        raise UsageError(f"{file}: weight {k} is {weights[k].item():g}, not positive")
    if abs(weights.sum().item() - 1) > 1e-6:
        raise UsageError(f"{file}: the weights sum to {weights.sum().item():.8g}, not 1")
    for k, cov in enumerate(covs):
        if not torch.allclose(cov, cov.T, rtol=0, atol=1e-8 * cov.abs().max().item()):
            raise UsageError(f"{file}: the covariance of component {k} is not symmetric")
        if torch.linalg.cholesky_ex(cov).info != 0:
            raise UsageError(f"{file}: the covariance of component {k} is not positive definite")
