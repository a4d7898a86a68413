"""`resume=auto` of sample, nll and evaluate: a run that ended early goes on where it stopped, to the same result."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffcli import checkpoint
from diffcli.commands.common import typed
from diffcli.commands.partial import FOLDER, Partial
from diffcli.commands.requeue import comes_back, job
from diffcli.commands.run_folder import RunFolder, choose, create, look, place, say
from diffcli.errors import NumericalError, UsageError

# what changes nothing in the result; the checkpoint counts by what is in it
FREE = ("out", "overwrite", "resume", "devices", "device", "debug", "dry_run", "batch_size", "ckpt")
# settings that may name a file; those of data may be too large to be read for this
FILES = ("ckpt", "start", "input", "samples", "file", "test_file", "val_file", "mask", "vector", "weights")
DATA = ("data", "source")


@dataclass
class Place:
    """Where a run writes; `goes_on` with what an earlier one of the same settings left there, `finished` where that is all."""

    command: str
    path: Path
    config: dict
    inputs: dict[str, str] = field(default_factory=dict)
    goes_on: bool = False
    finished: bool = False
    looked: dict | None = None  # what was in the folder

    def create(self) -> RunFolder:
        """The folder, with what is there or without, and the files that the run depends on in its record."""
        folder = create(self.path, self.command, self.config, keep=self.goes_on, looked=self.looked)
        (self.path / "error.log").unlink(missing_ok=True)  # of the run that failed
        folder.write("running", inputs=self.inputs, job=job())
        return folder

    @contextlib.contextmanager
    def rows(self, n: int, size: int, what: str, keeps: dict[str, str] | None = None) -> Iterator[Partial]:
        """The rows of this run, `what` in words, on disk; those that are there already are whole batches of `size`.

        However it ends before its time, it says how to go on.
        """
        partial = Partial(self.path, n, keeps, fresh=not self.goes_on)
        partial.keep(n if partial.rows == n else partial.rows // size * size)
        if partial.rows:
            say(f"going on at {what} {partial.rows} of {n}")
        try:
            yield partial
        except (UsageError, NumericalError):  # which would come again
            raise
        except BaseException:
            if partial.rows:
                there = f"{partial.rows} of {n} {what}s are in {partial.folder}"
                with contextlib.suppress(OSError):
                    print(f"{there}; to go on: the same command with out={self.path} resume=auto", file=sys.stderr)
            raise
        finally:
            partial.close()


def find_place(command: str, config: dict, fit: str = "") -> Place:
    """The run's folder as `choose` gives it, and with resume=auto, or where a scheduler starts its job again, what is in it.

    fit: what tells the fit that it walks by from another (`tuned.of_walk`).
    Raises UsageError where another run is there: of another command, other settings or other files.
    """
    if config["resume"] not in ("never", "auto"):
        raise UsageError(f"resume={config['resume']}: {command} goes on in out=DIR by itself", "resume=auto or never")
    if not typed("resume=") and comes_back(place(config)):
        config["resume"] = "auto"
    if config["resume"] == "never":
        return Place(command, choose(command, config), config, _inputs(config, fit))
    if place(config) is None:
        raise UsageError("resume=auto looks in out=DIR, and no out is given", "out=DIR")
    path = choose(command, config | {"overwrite": True})
    looked = look(path)
    record = _record(path)
    if record is None or record.get("command") != command:
        return Place(command, choose(command, config), config, _inputs(config, fit))
    left = (path / FOLDER).exists()  # without that, it ended before it had anything to keep
    found = Place(command, path, config, _inputs(config, fit), left, record.get("status") == "finished", looked)
    if found.finished or left:
        _check_same(record, found)
    if found.finished:
        say(f"{path} has finished already; another out=DIR, or overwrite=true resume=never, does it again")
    return found


def _record(path: Path) -> dict | None:
    try:
        found = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_same(record: dict, new: Place) -> None:
    """Raise UsageError that names the first file or setting which is not as it was."""
    hint = "the same settings, another out=DIR, or overwrite=true resume=never to begin again"
    was = record.get("inputs") or {}
    for name, digest in new.inputs.items():
        if was.get(name, digest) != digest:
            raise UsageError(f"the run in {new.path} used another {name}: its content has changed", hint)
    # as they are read from a file
    old, now = record.get("config") or {}, json.loads(json.dumps(new.config, default=str))
    keys = [key for key in [*old, *(k for k in now if k not in old)] if key not in FREE]
    found = next((d for key in keys for d in differences(old.get(key), now.get(key), key)), None)
    if found is not None:
        key, before, after = found
        raise UsageError(f"the run in {new.path} has other settings: {key} was {before}, is now {after}", hint)


def differences(old, new, key: str) -> Iterator[tuple[str, object, object]]:
    """(dotted key, old, new) of each leaf in which two nested configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for k in [*old, *(k for k in new if k not in old)]:
            yield from differences(old.get(k), new.get(k), f"{key}.{k}")
    elif old != new:
        yield key, old, new


def _inputs(config: dict, fit: str) -> dict[str, str]:
    """Of each file that a setting names, what tells it from another: its content's hash, of data size and time of change."""
    files = _files({k: v for k, v in config.items() if k != "denoiser"})
    return {key: _digest(path, key) for key, path in files} | ({"fit of diffcli tune": fit} if fit else {})


def _files(node: dict, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _files(value, f"{prefix}{key}.")
        elif key in FILES:
            for word in value if isinstance(value, list) else [value]:
                with contextlib.suppress(OSError, ValueError):  # a word that is no path
                    path = Path(word).expanduser() if isinstance(word, str) else None
                    if path is not None and (path.is_file() or (key == "input" and path.is_dir())):
                        yield (f"{prefix}{key} {word}" if isinstance(value, list) else f"{prefix}{key}"), path


def _digest(path: Path, key: str) -> str:
    if key.rpartition(".")[2] == "ckpt":  # diffcli tune adds to the file, and the model stays the same
        return checkpoint.fingerprint(checkpoint.read(path, None))
    if path.is_file() and key.partition(".")[0] not in DATA:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    found = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in found]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
