"""The folder of one run: where it is, what it holds, and the record run.json."""

import contextlib
import itertools
import json
import os
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path

from diffcli.commands.folder_lock import FolderLock
from diffcli.commands.provenance import git, hardware, versions
from diffcli.commands.run_files import remove_own, results
from diffcli.errors import DiffcliError, UsageError
from diffcli.writing import TEMPORARY, as_sentence, unwritten, whole, write_text

RETRIES = 1000  # of a parent folder that other runs remove

_reserved: dict[Path, list[Path]] = {}  # new folders in which no run has begun, and what was made for each
_open: list["RunFolder"] = []  # runs of this process that have not ended


class RunFolder:
    """`path`, made new, with a record that is complete from the start and brought up to date at the end.

    earlier: the record of a run that goes on, which stays where nothing comes of that.  found: the results that were there.
    """

    def __init__(self, path: Path, command: str, config: dict, made: list[Path] | tuple = ()):
        self.path, self.begun = path, time.monotonic()
        self.made = made  # folders that were not there before, innermost first
        self.lock: FolderLock | None = None
        self.earlier: str | None = None
        self.found: dict[Path, int] = {}
        self.record = {
            "command": command,
            "status": "running",
            "config": config,
            "seed": config["seed"],
            "git": git(),
            "versions": versions(),
            "hardware": hardware(),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "steps": None,
            "nfe": None,
            "seconds": None,
            "results": {},
        }

    def write(self, status: str, **entries) -> None:
        """Bring run.json up to date; the file is always whole.

        Raises DiffcliError where it cannot be written, or where the folder is no longer this run's.
        """
        self.check()
        write_text(self.path / "run.json", self.text(status, **entries))

    def text(self, status: str, **entries) -> str:
        """What run.json is to hold."""
        self.record |= {"status": status, "seconds": round(time.monotonic() - self.begun, 3), **entries}
        return json.dumps(self.record, indent=2, default=str, allow_nan=True) + "\n"

    def check(self) -> None:
        """Raise DiffcliError where the folder was removed, or made anew by another run, while this one ran."""
        if self.lock is not None and not self.lock.mine():
            gone = "is no longer there" if not self.path.is_dir() else "is no longer this run's"
            raise DiffcliError(
                f"{self.path} {gone}: it was removed while the run was going on", "the same command again"
            )

    def failed(self, error: BaseException) -> None:
        """Keep what went wrong, as far as the disk takes it, in error.log with its trace and in run.json."""
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(DiffcliError):
            self.check()
            with contextlib.suppress(DiffcliError):
                write_text(self.path / "error.log", trace)
            self.write("failed", results={"error": str(error)})

    def interrupted(self) -> None:
        """Say in run.json that a signal ended the run."""
        with contextlib.suppress(DiffcliError):
            self.write("interrupted")

    def release(self) -> None:
        """Let other runs into the folder."""
        if self in _open:
            _open.remove(self)
        if self.lock is not None:
            self.lock.free()

    def refused(self, error: BaseException) -> bool:
        """Leave nothing of a run that did not start, its own files and the folders made for it, and of one that was to go on all
        that it found.  A run that has come to something stays, as failed.  Returns whether it did not start.
        """
        if results(self.path) != self.found:
            self.failed(error)
            return False
        if self.earlier is not None:
            with contextlib.suppress(DiffcliError):
                write_text(self.path / "run.json", self.earlier)
        else:
            remove_own(self.path)
            self.release()
            _remove_empty(self.made)
        return True


def _remove_empty(folders: list[Path] | tuple) -> None:
    """Those without files, the innermost first."""
    with contextlib.suppress(OSError):
        for path in folders:
            path.rmdir()


def reserve(path: Path) -> Path:
    """A new folder as of `new_folder`, which goes again where no run begins in it."""
    path, made = new_folder(path)
    _reserved[path] = made
    return path


def new_folder(path: Path) -> tuple[Path, list[Path]]:
    """A new folder of this name, or of one with a number behind it where another run was faster by a moment; what was made.

    Raises DiffcliError (exit 1) if it cannot be made.
    """
    made, name = [p for p in path.parents if not p.exists()], path.name
    for number in itertools.count(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            break
        except FileExistsError as error:
            if not path.exists() and not path.is_symlink():  # a file stands where one of the parents should
                raise unwritten(path, error) from error
            path = path.with_name(f"{name}-{number}")
        except FileNotFoundError as error:  # another run has just removed the parent, which it had made and left empty
            if number > RETRIES:
                raise unwritten(path, error) from error
        except OSError as error:
            raise unwritten(path, error) from error
    return path, [path, *made]


def leave(error: BaseException | None = None) -> None:
    """After a job, whatever came of it: what it has reserved and not used goes, what it has left open is closed."""
    for folder in list(_open):
        if error is not None:
            folder.interrupted() if isinstance(error, KeyboardInterrupt) else folder.failed(error)
        folder.release()
    while _reserved:
        _remove_empty(_reserved.popitem()[1])


def place(config: dict) -> Path | None:
    """The folder that a run is told to be in: `out`, of a sweep's job its number in it, else the job's own; None if none."""
    from hydra.core.hydra_config import HydraConfig

    sweep = (
        HydraConfig.initialized() and HydraConfig.get().mode is not None and HydraConfig.get().mode.name == "MULTIRUN"
    )
    if config["out"] is not None:
        path = Path(config["out"]).expanduser()
        return path / str(HydraConfig.get().job.num) if sweep else path
    return Path(HydraConfig.get().runtime.output_dir) if sweep else None


def choose(command: str, config: dict) -> Path:
    """The folder of this run: `out`, else a new one under outputs/.  Raises UsageError if `out` holds another run."""
    path = place(config)
    if path is None:
        path = Path("outputs") / command / new_name()
        if not config.get("dry_run"):
            return reserve(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"out={path} is a file, not a folder")
    ckpt = config.get("ckpt")
    if ckpt is not None and Path(ckpt).resolve().is_relative_to(path.resolve()) and (path / "run.json").exists():
        raise UsageError(f"out={path} is the run that ckpt={ckpt} belongs to, which would be lost", "another out=DIR")
    if (path / "run.json").exists() and not config["overwrite"]:
        more = " or resume=auto goes on with it; overwrite=true replaces it" if command == "train" else ""
        raise UsageError(f"out={path} already holds a run", f"another out=DIR{more or ', or overwrite=true'}")
    return path


def new_name() -> str:
    """The moment, to the microsecond."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")


def look(path: str | Path | None) -> dict[str, tuple[int, int]]:
    """What a run has left in a folder so far, to see in `create` that no other run has begun and ended there since."""
    path = Path(path).expanduser() if path is not None else None
    files = [] if path is None else [path / "run.json", *(path / "checkpoints").glob("*.ckpt")]
    found = [(file, file.stat()) for file in files if file.exists()]
    return {file.name: (stat.st_mtime_ns, stat.st_size) for file, stat in found}


def create(
    path: Path, command: str, config: dict, keep: bool = False, looked: dict[str, tuple[int, int]] | None = None
) -> RunFolder:
    """Make the folder this run's own (emptied of an earlier run's own files unless `keep`) and write its run.json.

    looked: what `look` found in it when it was decided how to go on.
    Raises UsageError if another run is writing there, or has begun and ended there since; DiffcliError (exit 1) if the folder
    cannot be written, which is found out before anything of an earlier run is removed.
    """
    folder = RunFolder(
        path, command, config, _reserved.get(path) or [p for p in (path, *path.parents) if not p.exists()]
    )
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder.lock = FolderLock(path)
        _open.append(folder)
        _reserved.pop(path, None)
        record = path / "run.json"
        if looked is not None and look(path) != looked:
            raise UsageError(
                f"out={path}: another run has ended there since this one was started", "the same command again"
            )
        if looked is None and record.exists() and not keep and not config.get("overwrite"):
            raise UsageError(f"out={path} already holds a run, which has just begun", "another out=DIR")
        text = folder.text("running")
        if keep and record.exists():
            folder.earlier = record.read_text(encoding="utf-8")
        with whole(record) as temporary:
            temporary.write_text(text, encoding="utf-8")
            for left in set(path.glob(TEMPORARY)) - {temporary}:
                left.unlink()
            if record.exists() and not keep:
                remove_own(path)
            folder.found = results(path)
    except BaseException as error:
        _abandon(folder)
        if isinstance(error, OSError):
            raise as_sentence(error, path) from error
        raise
    return folder


def _abandon(folder: RunFolder) -> None:
    """Nothing was begun: the folder is again as it was found."""
    folder.release()
    _reserved.pop(folder.path, None)
    _remove_empty(folder.made)


def say(text: str) -> None:
    """A line on screen, in order with what else is printed there; where nobody reads any more, the work goes on.

    Raises DiffcliError where the output is a file that cannot take it.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise unwritten("to standard output", error) from error
