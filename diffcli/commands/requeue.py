"""A job that its scheduler stops and starts again goes on by itself; submitit queues it once the training has saved."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path


def job(env=os.environ) -> str | None:
    """The scheduler's name for the job that this process is of, the same after each start of it; None outside one."""
    if env.get("SUBMITIT_EXECUTOR") == "local":
        return f"submitit {env.get('SUBMITIT_LOCAL_JOB_ID')}"
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"slurm {env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID')}"
    return f"slurm {env['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in env else None


def comes_back(path: Path | None, env=os.environ) -> bool:
    """Whether the run in this folder is of this very job, which its scheduler has started once more.

    A person who types the same line twice in one allocation has not said so: the second is refused as ever.
    """
    again = "SUBMITIT_EXECUTOR" in env or int(env.get("SLURM_RESTART_COUNT") or 0) > 0
    if not again or path is None or not (path / "run.json").exists():
        return False
    try:
        return json.loads((path / "run.json").read_text()).get("job") == job(env) is not None
    except (OSError, ValueError):
        return False


def saved_first(run: Callable[[], int]) -> int:
    """`run()`, in which submitit's signal to stop is the SIGUSR1 that a training answers by saving; then submitit has its way.

    Its own answer, at any moment, is to write the job down, queue it again and end the process.
    """
    its = signal.getsignal(signal.SIGUSR2) if "SUBMITIT_EXECUTOR" in os.environ else None
    if not callable(its) or threading.current_thread() is not threading.main_thread():
        return run()
    asked, code = [], None

    def answer(signum, frame) -> None:
        asked.append(signum)
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR2, answer)
    try:
        code = run()
    finally:
        signal.signal(signal.SIGUSR2, its)
        if asked and code != 0:
            its(signal.SIGUSR2, None)
    return code
