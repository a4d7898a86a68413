"""What real items give in the place of samples, kept on disk under everything that it depends on: no model changes it."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from diffcli.metrics.features.reference import cache_folder
from diffcli.writing import flushed

VERSION = 1  # of the file and of the arithmetic behind it

Values = dict[str, list[float]]
Keep = Callable[[dict, Callable[[], Values]], Values]  # (what they depend on, what computes them) -> the figures


def anew(key: dict, make: Callable[[], Values]) -> Values:
    """The figures computed, and kept nowhere."""
    return make()


def kept(key: dict, make: Callable[[], Values], cache: Path | None = None) -> Values:
    """The figures of `make()`, a list of each, from the cache where those of the same key have been computed before.

    A file that is damaged or of another key is made anew; where the cache cannot be written, nothing is kept.
    cache: a folder, by default `cache_folder()`.
    """
    text = json.dumps({"version": VERSION, **key}, sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    path = (cache_folder() if cache is None else cache) / f"{name}.json"
    try:
        found = json.loads(path.read_text())
        if found["key"] == text and _right(found["values"]):
            return found["values"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of these files
        pass
    values = make()
    if _right(values):
        with contextlib.suppress(OSError):  # the statistics beside it have said so already
            path.parent.mkdir(parents=True, exist_ok=True)
            with flushed(path) as file:
                file.write(json.dumps({"key": text, "values": values}).encode())
    return values


def _right(values) -> bool:
    """Whether these are lists of finite numbers by their names: JSON has no others."""
    return isinstance(values, dict) and all(
        isinstance(one, list) and all(isinstance(v, float) and math.isfinite(v) for v in one) for one in values.values()
    )
