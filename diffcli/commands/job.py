"""One job of Hydra's as its sweeper and its launcher see it: how it ended comes back, from another process too."""

import contextlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from diffcli.commands.figures import main_figure
from diffcli.errors import DiffcliError
from diffcli.signals import Interrupts
from diffcli.writing import write_text

REFUSED = "refused.json"  # in the folder of a job that started no run: what was asked for, and why it could not be


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `float` is what a search minimises.

    figure: val_loss after training, bits/dim or nats of nll, the first measure of evaluate.  A job that failed has none, which
    a sweeper takes for a failed trial, and goes on.
    """

    code: int
    error: str = ""
    figure: float | None = None

    def __str__(self) -> str:
        return self.error or f"exit code {self.code}"

    def __float__(self) -> float:
        if self.figure is None or not math.isfinite(self.figure):
            raise ValueError(self.error or "the job has no figure that could be compared")
        return float(self.figure)


class Job:
    """The task that Hydra runs, here or in a process that gets it by pickle.

    boundary: (command, cfg) -> Outcome, by which every failure has become a sentence and a code.
    """

    def __init__(self, command: str, boundary: Callable[[str, object], Outcome]):
        self.command, self.boundary, self.elsewhere = command, boundary, False
        self.ended: dict[int, Outcome] = {}  # by the job's number
        self.signum = 0  # of the signal that ended the sweep
        self.__module__, self.__name__ = f"diffcli.commands.{command}", command  # these name Hydra's job

    def __getstate__(self) -> dict:
        return self.__dict__ | {"elsewhere": True, "ended": {}}

    def __call__(self, cfg) -> Outcome:
        quiet()
        with Interrupts() if self.elsewhere else contextlib.nullcontext():
            return self._run(cfg)

    def _run(self, cfg) -> Outcome:
        hydra = _sweeping()
        if hydra is not None:
            (job_folder(cfg.out, hydra) / REFUSED).unlink(missing_ok=True)
        try:
            outcome = self.boundary(self.command, cfg)
        except KeyboardInterrupt as error:
            outcome = Outcome(getattr(error, "exit_code", 130), "interrupted")
            if not self.elsewhere:
                self.keep(cfg, outcome, hydra)
                raise
        return self.keep(cfg, outcome, hydra)

    def keep(self, cfg, outcome: Outcome, hydra) -> Outcome:
        """The outcome with its figure, noted here, and in the job's folder where no run was started that would say it."""
        if hydra is not None:
            folder = job_folder(cfg.out, hydra)
            outcome = outcome if outcome.code else ended_well(folder)
            if outcome.code and not (folder / "run.json").exists():
                note_refusal(folder, self.command, list(hydra.overrides.task), outcome)
        self.ended[0 if hydra is None else hydra.job.num] = outcome
        return outcome

    def code(self) -> int:
        """The exit code of all jobs: the worst."""
        return max((o.code for o in self.ended.values()), default=0)


def job_folder(out, hydra) -> Path:
    """Where a sweep's job writes its run."""
    if isinstance(out, str):
        return Path(out).expanduser() / str(hydra.job.num)
    return Path(hydra.sweep.dir) / str(hydra.sweep.subdir)


def _sweeping():
    """Hydra's own settings of this job; None where there is no sweep."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    return hydra if hydra is not None and hydra.mode is not None and hydra.mode.name == "MULTIRUN" else None


def searches() -> bool:
    """Whether a sweeper compares the figures of this job and others, which a grid does not."""
    hydra = _sweeping()
    return hydra is not None and "optuna" in str(hydra.sweeper.get("_target_"))


def note_refusal(folder: Path, command: str, overrides: list[str], outcome: Outcome) -> None:
    """Leave word of a job that started no run; where it cannot be written, what was printed has to do."""
    record = {
        "command": command,
        "status": "refused",
        "overrides": overrides,
        "exit_code": outcome.code,
        "error": outcome.error,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError, DiffcliError):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / REFUSED, json.dumps(record, indent=2) + "\n")


def ended_well(folder: Path) -> Outcome:
    """The outcome of the job that has finished in `folder`, with the figure that its record has."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return Outcome(0, "it wrote no run")  # dry_run=true
    found = main_figure(record)
    if found is None or (record.get("command") == "train" and found[0] != "val_loss"):
        return Outcome(
            0,
            "its run has no figure to compare"
            + ": no validation, see trainer.val_check_interval" * (found is not None),
        )
    return Outcome(0, figure=found[1])


def quiet() -> None:
    """No warnings of deprecations between torch and lightning, which a user could not act on."""
    for module in ("torch", "lightning"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
