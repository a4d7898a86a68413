"""Hydra's launchers, such that a job that dies leaves the others, and a signal ends all of them."""

import contextlib
import ctypes
import json
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from diffcli.commands.job import REFUSED, Job, Outcome, ended_well, job_folder, note_refusal
from diffcli.commands.run_folder import say
from diffcli.errors import DiffcliError
from diffcli.signals import SIGNALS, Interrupted
from diffcli.writing import write_text

PATIENCE = 10  # seconds for what a process that ended has printed; one that outlives it may hold its output open
DAY = 24 * 60  # minutes
GO_ON = ("train", "sample", "nll", "evaluate")  # commands that a job which comes back continues
STOCK = {"timeout_min": 60, "max_num_timeout": 0}  # of the submitit launchers, where a user says nothing


def side_by_side(launcher, _, task: Job, job_overrides: list[list[str]], first: int) -> list:
    """hydra/launcher=joblib: its n_jobs at a time, each in a process of its own.

    Its own worker processes are one pool: one that is killed, where memory runs out, takes those beside it along.
    """
    from joblib import Parallel, delayed

    say(f"{len(job_overrides)} jobs, {launcher.joblib.get('n_jobs')} at a time (-1: one a core)")
    jobs = [_Process(launcher, task, words, first + i) for i, words in enumerate(job_overrides)]
    options = {k: v for k, v in launcher.joblib.items() if k in ("n_jobs", "verbose")}
    with _passed_on(task, lambda signum: [job.send(signum) for job in jobs]):
        outcomes = Parallel(**options, backend="threading")(delayed(job)() for job in jobs)
    return _told(task, [job.number for job in jobs], outcomes)


class _Process:
    """A job in a process of its own, with its number before each line that it prints."""

    def __init__(self, launcher, task: Job, overrides: list[str], number: int):
        self.task, self.number, self.overrides = task, number, overrides
        context = launcher.hydra_context
        self.config = _job_config(launcher, overrides, number)
        self.content = pickle.dumps(sys.path) + pickle.dumps((context, self.config, task))
        self.process: subprocess.Popen | None = None
        self.missed = 0  # a signal that came while it was being started
        self.lock = threading.RLock()  # with n_jobs=1 the thread that starts it is the one that signals come to

    def __call__(self) -> Outcome:
        program = [sys.executable, str(Path(__file__).resolve().parents[1] / "_sweep_job.py")]
        with self.lock:
            if self.task.signum:
                return Outcome(128 + self.task.signum, "not started")
            self.process = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )  # a Ctrl-C for the group is passed on once, not met twice
            if self.missed:
                self.process.send_signal(self.missed)
        reader = threading.Thread(target=self._print, args=(self.process.stdout,), daemon=True)
        reader.start()
        with contextlib.suppress(BrokenPipeError):  # it ended before it read; its exit code says so
            self.process.stdin.write(self.content)
            self.process.stdin.close()
        code = self.process.wait()
        reader.join(PATIENCE)
        return outcome_of(self.task.command, self.config, self.overrides, code)

    def _print(self, lines) -> None:
        for line in lines:
            say(f"[{self.number}] {line.decode(errors='replace').rstrip()}")

    def send(self, signum: int) -> None:
        with self.lock:
            if self.process is None:
                self.missed = signum
            elif self.process.poll() is None:
                self.process.send_signal(signum)


def submitted(launcher, launch: Callable, task: Job, job_overrides: list[list[str]], first: int) -> list:
    """hydra/launcher=submitit_…: waits for every job, and takes one that left no result for a failed one."""
    import submitit

    jobs: list = []
    original = submitit.AutoExecutor.map_array

    def map_array(self, *arguments):
        handler = signal.getsignal(signal.SIGINT)
        with contextlib.suppress(ValueError):  # outside the main thread
            signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # what starts now keeps it: submitit's would kill within a second
        try:
            jobs.extend(original(self, *arguments))
        finally:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, handler)
        if task.signum:  # it came while there were none to tell
            stop(task.signum)
        logs = sorted({str(job.paths.stdout.parent) for job in jobs})
        say(f"{len(jobs)} jobs: {', '.join(str(job.job_id) for job in jobs)}; what they print is in {logs[0]}, …")
        configs = [_job_config(launcher, words, first + i) for i, words in enumerate(job_overrides)]
        return [_Waited(job, task, *of) for job, *of in zip(jobs, job_overrides, configs, strict=True)]

    def stop(signum: int) -> None:
        for job in jobs:
            with contextlib.suppress(OSError):
                if hasattr(job, "_process"):  # of this machine: cancel() is a kill within a second
                    job._process.send_signal(signal.SIGTERM)
                else:
                    job.cancel(check=False)

    submitit.AutoExecutor.map_array = map_array
    launcher.params |= _usual(launcher.params, task.command)
    try:
        with _passed_on(task, stop, but=(signal.SIGHUP,)):  # the terminal's end is not that of jobs that others run
            returns = launch(job_overrides, initial_job_idx=first)
    finally:
        submitit.AutoExecutor.map_array = original
    return _told(task, range(first, first + len(returns)), [r.return_value for r in returns])


def _usual(params: dict, command: str) -> dict:
    """What stands in the place of submitit's own defaults: a job may take a day, not an hour, and a training whose time is up has
    saved, and is queued again; it goes on by itself, as sample, nll and evaluate do.
    """
    usual = {"timeout_min": DAY, "max_num_timeout": 10 if command in GO_ON else 0}
    return {key: value for key, value in usual.items() if params.get(key) == STOCK[key]}


class _Waited:
    """A submitit job whose results can always be had."""

    def __init__(self, job, task: Job, overrides: list[str], config):
        self.job, self.task, self.overrides, self.config = job, task, overrides, config

    def results(self) -> list:
        import submitit

        try:
            (found,) = self.job.results()
            return [found]
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
            state = str(self.job.state).lower()
        outcome = outcome_of(
            self.task.command, self.config, self.overrides, None, f"the job ended without a result ({state})"
        )
        outcome = replace(outcome, error=f"{outcome.error}; see {self.job.paths.stderr}")
        return [_returned(outcome)]


def run_alone(context, config, task: Job) -> int:
    """What such a process does; returns its exit code.  Where the sweep dies, it ends as by SIGTERM: training saves."""
    from hydra import version
    from hydra.core.utils import run_job, setup_globals

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    setup_globals()
    version.setbase("1.3")
    keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
    return run_job(task_function=task, config=config, hydra_context=context, **keys).return_value.code


WAYS = {"JoblibLauncher": side_by_side, "LocalLauncher": submitted, "SlurmLauncher": submitted}


def outcome_of(command: str, config, overrides: list[str], code: int | None, error: str = "") -> Outcome:
    """How a job of another process ended, by its exit code and by what it left in its folder.

    A process that was killed could not write its last word: this writes it.
    """
    folder = job_folder(config.out, config.hydra)
    if code == 0:
        return ended_well(folder)
    if code is not None and code < 0:
        error = f"its process was killed by {signal.Signals(-code).name}"
        error += " (as where memory runs out)" if -code == signal.SIGKILL else ""
        code = 128 - code
    elif code is not None:
        return Outcome(code, _said_in(folder))
    outcome = Outcome(1 if code is None else code, error)
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        note_refusal(folder, command, overrides, outcome)
        return outcome
    if record.get("status") == "running":
        record |= {"status": "failed", "results": (record.get("results") or {}) | {"error": error}}
        with contextlib.suppress(DiffcliError):
            write_text(path, json.dumps(record, indent=2) + "\n")
    return outcome


def _said_in(folder: Path) -> str:
    for name in (REFUSED, "run.json"):
        with contextlib.suppress(OSError, ValueError):
            record = json.loads((folder / name).read_text())
            return record.get("error") or (record.get("results") or {}).get("error") or ""
    return ""


def _job_config(launcher, overrides: list[str], number: int):
    from omegaconf import open_dict

    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, overrides)
    with open_dict(config):
        config.hydra.job.id = f"{config.hydra.job.name}_{number}"
        config.hydra.job.num = number
    return config


def _returned(outcome: Outcome):
    from hydra.core.utils import JobReturn, JobStatus

    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = outcome
    return returned


def _told(task: Job, numbers, outcomes: list[Outcome]) -> list:
    task.ended |= dict(zip(numbers, outcomes, strict=True))
    if task.signum:
        raise Interrupted(task.signum)
    return [_returned(outcome) for outcome in outcomes]


@contextlib.contextmanager
def _passed_on(task: Job, send: Callable[[int], object], but: tuple[int, ...] = ()) -> Iterator[None]:
    """While entered, a signal goes to all jobs, which save and end; the sweep then ends with 128 + n."""

    def pass_on(signum, frame):
        task.signum = task.signum or signum
        send(signum)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {
            s: signal.signal(s, pass_on) for s in SIGNALS if s not in but and signal.getsignal(s) != signal.SIG_IGN
        }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
