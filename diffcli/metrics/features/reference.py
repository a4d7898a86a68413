"""The statistics of the data that samples are measured against, kept on disk under everything that they depend on."""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.data.base import Items
from diffcli.errors import UsageError
from diffcli.metrics.features.base import FeatureNetwork
from diffcli.metrics.features.statistics import KEPT, Gathered, Moments, Statistics, collect
from diffcli.metrics.frechet import frechet
from diffcli.metrics.inception_score import ScoreSums
from diffcli.randomness import key
from diffcli.writing import flushed

VERSION = 1  # of the file and of the arithmetic behind it
CHUNK = 1000  # items read from the data set at once


@dataclass
class Reference:
    """Statistics of n items of real data, the protocol they were taken by, and its hash."""

    statistics: Statistics
    protocol: dict
    hash: str
    path: Path | None = None
    from_cache: bool = False

    @property
    def moments(self) -> Moments:
        """Of all n items."""
        return self.statistics.moments

    @property
    def gathered(self) -> Gathered:
        """The features of some of them."""
        return self.statistics.gathered


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/diffcli/reference`, in ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "diffcli" / "reference"


def reference(
    items: Items,
    network: FeatureNetwork,
    levels: int | None,
    split: str,
    cache: Path | str | None = None,
    kept: int = KEPT,
    splits: int = 10,
    progress=lambda batches: batches,
    warn: Callable[[str], None] = lambda sentence: print(f"warning: {sentence}", file=sys.stderr),
) -> Reference:
    """The statistics of every item of a split, from the cache where the same have been taken before.

    The file's name is a hash of the items themselves, split, levels, network (kind, settings, weights) and preprocessing; the
    whole key is also in the file and compared.  A file that is damaged, or of another key, is made anew with a warning; a cache
    that cannot be written is left out with a warning.  cache: a folder, by default `cache_folder()`.
    progress wraps the batches; warn takes a sentence.  Raises what FeatureNetwork.read raises.
    """
    protocol = {
        "version": VERSION,
        "data": fingerprint(items),
        "split": split,
        "n": len(items),
        "levels": levels,
        "kept": min(kept, len(items)),
        "splits": splits,
        "features": network.name,
        "network": network.identity(),
        "preprocessing": network.preprocessing(),
    }
    text = json.dumps(protocol, sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    path = (cache_folder() if cache is None else Path(cache).expanduser()) / f"{name}.npz"
    if path.exists():
        try:
            return Reference(_load(path, text, protocol, network.dim), protocol, name, path, from_cache=True)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            reason = "it holds no arrays of numbers" if "pickle" in reason else reason  # numpy's advice is to load it
            warn(f"{path} is damaged ({reason}): its statistics are taken again")
    found = collect(progress(batches(items)), network, levels, samples=False, kept=kept, of=len(items), splits=splits)
    try:
        _save(found, path, text)
    except OSError as error:
        warn(f"the reference statistics could not be kept in {path.parent} ({error.strerror or error})")
        path = None
    return Reference(found, protocol, name, path)


def batches(items: Items, size: int = CHUNK):
    """The items in order, x (B, *S) at a time."""
    for begin in range(0, len(items), size):
        yield items.__getitems__(range(begin, min(begin + size, len(items))))[0]


def fingerprint(items: Items) -> str:
    """A hash of the items, their order, dtype and shape; the labels are not read by any measure."""
    found = hashlib.blake2b(digest_size=16)
    for x in batches(items):
        found.update(repr((str(x.dtype), tuple(x.shape))).encode())
        found.update(x.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def floor(found: Reference, n: int, draws: int = 2, seed: int = 0) -> tuple[list[float], int]:
    """Fréchet distances of m real items to all the others, m = min(n, N // 2, kept): what perfect samples give at that count.

    One value a draw of m among the kept features, and m.  The expected distance of two finite sets of one law is not 0: it is
    a bias of order 1/m, larger for more dimensions (Chong & Forsyth 2020, arXiv:1911.07023).
    """
    features, whole = found.gathered.features, found.moments
    m = min(n, whole.n // 2, len(features))
    if m < 2:
        raise UsageError(f"{whole.n} real items are too few to measure what perfect samples would give")
    values = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(key("floor", seed, draw) % 2**63)
        part = Moments.of(features[torch.randperm(len(features), generator=generator)[:m]])
        values.append(frechet(part, whole.without(part)))
    return values, m


def few_samples(
    n: int, dim: int, floor_values: list[float] | None = None, m: int | None = None, of_reference: int | None = None
) -> str:
    """The sentence that stands beside a Fréchet distance of n items in `dim` dimensions, "" where n is enough.

    of_reference: items of the other side, which bias it as much where they are fewer.

    Below dim + 1 items the covariance has no full rank; below ten times dim the bias is not small beside good samples'.
    """
    real = of_reference is not None and of_reference < n
    least = of_reference if real else n
    if least > 10 * dim:
        return ""
    items = f"{least} items of the reference" if real else f"{n} items"
    why = (
        f"the covariance of {items} in {dim} dimensions has rank {least - 1} at most"
        if least <= dim
        else f"{items} are fewer than ten times the {dim} dimensions of the features"
    )
    same = "with the same reference and the same n" if real else "at the same n"
    tell = f"the distance is biased upwards: compare it {same} only"
    if floor_values:
        tell += f"; real items in the place of the samples give {sum(floor_values) / len(floor_values):.3g} at n={m}"
    return f"{why}, so {tell}"


def _save(found: Statistics, path: Path, text: str) -> None:
    arrays = {
        "mean": found.moments.mean,
        "scatter": found.moments.scatter,
        "features": found.gathered.features,
        "index": found.gathered.index,
    }
    if found.score is not None:
        arrays |= {"p": found.score.p, "plogp": found.score.plogp, "count": found.score.count}
    path.parent.mkdir(parents=True, exist_ok=True)
    with flushed(path) as file:
        np.savez(file, key=np.array(text), n=found.moments.n, **{k: v.numpy() for k, v in arrays.items()})


def _load(path: Path, text: str, protocol: dict, dim: int | None) -> Statistics:
    """Read a file; ValueError where its key is another or its arrays do not fit one another."""
    with np.load(path, allow_pickle=False) as file:  # the zip's checksums are verified as members are read
        a = {name: torch.from_numpy(np.array(file[name])) for name in file.files if name != "key"}
        if str(file["key"]) != text:
            raise ValueError("it was taken by another protocol")
    d = len(a["mean"])
    shapes = {"scatter": (d, d), "features": (protocol["kept"], d), "index": (protocol["kept"],), "n": ()}
    if dim not in (None, d) or any(a[name].shape != shape for name, shape in shapes.items()):
        raise ValueError("its arrays do not fit one another")
    if int(a["n"]) != protocol["n"] or not all(_finite(v) for v in a.values()):
        raise ValueError("its numbers cannot be right")
    score = None
    if "p" in a:
        score = ScoreSums(a["p"].shape[1], len(a["p"]))
        score.p, score.plogp, score.count, score.n = a["p"], a["plogp"], a["count"], protocol["n"]
    return Statistics(Moments(protocol["n"], a["mean"], a["scatter"]), Gathered(a["features"], a["index"]), score)


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())
