"""A sweep: how its jobs ended, wherever they ran, where they write, and what is left of those that did not begin."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from diffcli.commands.job import REFUSED, Job
from diffcli.commands.launchers import WAYS
from diffcli.commands.run_folder import say
from diffcli.errors import DiffcliError


@contextlib.contextmanager
def watched(task: Job) -> Iterator[None]:
    """While entered, every launcher that Hydra makes tells `task` how each of its jobs ended."""
    from hydra.core.plugins import Plugins

    logging.getLogger("alembic").setLevel(logging.WARNING)  # of optuna's storage: seven lines of its own plugins
    make = Plugins.instantiate_launcher

    def instantiate_launcher(self, hydra_context, task_function, config):
        if optuna := sys.modules.get("optuna"):  # which logs each trial in lines of its own, beside Hydra's
            optuna.logging.set_verbosity(optuna.logging.WARNING)
        launcher = make(self, hydra_context=hydra_context, task_function=task_function, config=config)
        launch, way = launcher.launch, WAYS.get(type(launcher).__name__)

        def watched_launch(job_overrides, initial_job_idx):
            if way is None:
                return launch(job_overrides, initial_job_idx=initial_job_idx)
            return way(launcher, launch, task, [list(words) for words in job_overrides], initial_job_idx)

        launcher.launch = watched_launch
        return launcher

    Plugins.instantiate_launcher = instantiate_launcher
    try:
        yield
        _sum_up(task)
    except ValueError as error:
        if "No trials are completed" not in str(error):
            raise
        reason = next((str(outcome) for outcome in task.ended.values() if str(outcome)), "none was started")
        failure = DiffcliError(f"no job of the search came to a figure ({reason})")
        failure.exit_code = task.code() or 1
        raise failure from error
    finally:
        Plugins.instantiate_launcher = make


def _sum_up(task: Job) -> None:
    """How many of a sweep's jobs ended well, and why the others did not: what they printed may be far up, or elsewhere."""
    if len(task.ended) < 2:
        return
    failed = {number: outcome for number, outcome in sorted(task.ended.items()) if outcome.code}
    say(f"{len(task.ended) - len(failed)} of {len(task.ended)} jobs ended well")
    for number, outcome in failed.items():
        say(f"  job {number}, exit code {outcome.code}: {outcome.error}")


def folder_of(settings: list[str]) -> Path | None:
    """The folder that `out=` gives to a sweep, each job a folder in it by its number; None where `out` is swept too."""
    value = next((word.partition("=")[2] for word in reversed(settings) if word.lstrip("+").startswith("out=")), "")
    value = value[1:-1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else value
    if value in ("", "null") or set(value) & set(",({[$"):
        return None
    return Path(value).expanduser()


def tidy(folder: Path, made: list[Path]) -> None:
    """Remove what Hydra made for jobs that started no run, and what was noted of them where none of them did.

    made: the folder and those of its parents that were not there before, the innermost first.
    """
    with contextlib.suppress(OSError):
        (folder / ".submitit" / "%j").rmdir()  # submitit makes the folder of a job before it has a number
    jobs = [p for p in folder.glob("*/") if p.name.isdigit()]
    if not any((job / "run.json").exists() for job in jobs):
        for name in [job / REFUSED for job in jobs]:
            name.unlink(missing_ok=True)
    for job in jobs:
        if not any(job.iterdir()):
            job.rmdir()
    if [p.name for p in folder.glob("*")] == ["multirun.yaml"]:
        (folder / "multirun.yaml").unlink()
    for path in made:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
