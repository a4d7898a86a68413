"""Samples of another program, from a file, in the place of drawing them."""

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from diffcli.commands.build import build
from diffcli.commands.common import plain, typed
from diffcli.commands.model import GROUPS, Model
from diffcli.commands.settings import check_settings
from diffcli.errors import DiffcliError, UsageError
from diffcli.metrics.features.base import check_items

LOOKED = 1000  # samples that show whether they are in [0, 1] in the place of levels
DRAWING = ("ckpt=", "network=", "sampler", "grid", "sde", "steps=", "nfe=", "last=", "weights=", "dtype=", "seed=")
DRAWING += ("label=", "vector=", "guidance")


def load_given(cfg) -> Model:
    """What they are compared with, as a Model that has no denoiser.  Raises UsageError where more is asked than a file gives."""
    config = plain(cfg)
    check_settings(config, GROUPS)
    if other := next((key for key in DRAWING if typed(key)), None):
        key = other.rstrip("=")
        raise UsageError(
            f"samples= are there already, so that {key} says nothing about them", f"samples= without {key}"
        )
    if not typed("data="):
        raise UsageError("samples= needs the data set that they are compared with", "data=NAME")
    data = build(config["data"], "data")
    return Model(None, data, tuple(data.shape), config["samples"], config)


class Given:
    """The samples of a .npy or .npz file (its first array): `(N, *S)`, of images also `(N, H, W, C)`, or `(N, H, W)` of grey ones.

    Raises UsageError where the file cannot be read, or has another shape or fewer than `count` samples.
    """

    def __init__(self, model: Model, n: int, repeats: int):
        self.path, self.levels, self.shape = Path(model.source).expanduser(), model.data.transform.levels, model.shape
        self.count, array = n * repeats, _read(self.path)
        if array.dtype.kind not in "iuf" or array.ndim < 2:
            raise UsageError(f"{self.path}: samples are numbers (N, ...), not {array.dtype} {array.shape}")
        self.axes = _axes(array.shape[1:], model.shape)
        if self.axes is None:
            raise UsageError(f"{self.path} has samples of shape {array.shape[1:]}, the data have {model.shape}")
        if len(array) < self.count:
            most = len(array) // repeats
            one = f"n={len(array)} repeats=1" if len(array) > 1 else "a file of more samples"
            fits = f"n={most} repeats={repeats}" if most > 1 else one
            raise UsageError(
                f"{self.path} holds {len(array)} samples, n={n} repeats={repeats} takes {self.count}", fits
            )
        self.array = array

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The samples in order `(B, *S)`, without evaluations.

        Raises UsageError for one outside the levels of the data, NumericalError for one that is not finite.
        """
        head = np.asarray(self.array[: min(LOOKED, self.count)])  # whatever the size of a batch
        if head.dtype.kind == "f" and (self.levels or 0) > 2 and head.min() >= -0.5 and 0 < head.max() <= 1:
            raise UsageError(
                f"{self.path} has values from {head.min():g} to {head.max():g}, the levels of the data are 0..{self.levels - 1}",
                f"the samples times {self.levels - 1}, if they lie in [0, 1]",
            )
        for begin in range(0, self.count, size):
            part = np.asarray(self.array[begin : min(begin + size, self.count)])
            x = part.transpose(0, *self.axes).reshape(len(part), *self.shape).astype(np.float64)
            try:
                check_items(torch.from_numpy(x), self.levels, begin)
            except DiffcliError as error:
                raise type(error)(f"{self.path}: {error.message}", error.hint) from error
            yield x, np.zeros(0, np.int64)


def file_hash(path: Path | str) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        return found if isinstance(found, np.ndarray) else found[found.files[0]]
    except OSError as error:
        raise UsageError(f"samples={path}: {error.strerror or error}", "samples=FILE.npy") from None
    except (ValueError, EOFError, IndexError, zipfile.BadZipFile):
        raise UsageError(f"samples={path} is no .npy or .npz file of numbers", "numpy.save(FILE, x)") from None


def _axes(found: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order of axes that makes `found` the shape of the data, None where none does."""
    if found == shape or (len(shape) == 3 and shape[0] == 1 and found == shape[1:]):
        return tuple(range(1, len(found) + 1))
    return (3, 1, 2) if len(shape) == 3 and found == (*shape[1:], shape[0]) else None
