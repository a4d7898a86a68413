"""Independent jobs shared over devices, a process each; results come in the order of the jobs, as from one device."""

import contextlib
import ctypes
import pickle
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Protocol

import torch
from torch.multiprocessing import get_context

from diffcli.errors import DiffcliError
from diffcli.signals import held


class Task(Protocol):
    """What is sent to each process, once, by pickle: a job in, a result out."""

    def to(self, device: torch.device) -> None: ...

    def __call__(self, job: Any) -> Any: ...


def share(task: Task, jobs: list, devices: list[torch.device]) -> Iterator[Any]:
    """`task(job)` for each of the jobs, in their order; job k is done on device k modulo their number.

    A process that is ahead waits until its results are taken, so that no more than a few are held.  A failure of a job is
    raised here; whatever ends the iteration ends the processes.  Raises DiffcliError where a process dies.
    """
    context = get_context("spawn")
    content, threads = pickle.dumps(task), max(1, torch.get_num_threads() // len(devices))
    workers = []
    resource_tracker.ensure_running()  # the first start would do it, and lift the blocking in the middle
    try:
        for i, device in enumerate(devices):
            ours, theirs = context.Pipe(duplex=False)
            arguments = content, jobs[i :: len(devices)], device, threads, theirs
            process = context.Process(target=_work, args=arguments, daemon=True)
            with held():  # a start that is broken off leaves a process that cannot read what it is to do
                process.start()
                workers.append((process, ours))
            theirs.close()
        for k in range(len(jobs)):
            process, ours = workers[k % len(devices)]
            try:
                done, result = ours.recv()
            except EOFError:
                process.join()
                raise DiffcliError(
                    f"the process of {devices[k % len(devices)]} ended in the middle of its work (exit code {process.exitcode})",
                    "devices=1; a process is killed where memory runs out",
                ) from None
            if not done:
                raise result
            yield result
    finally:
        for process, ours in workers:
            process.kill()
            process.join()
            ours.close()


def _work(content: bytes, jobs: list, device: torch.device, threads: int, results) -> None:
    die_with_parent()
    torch.set_num_threads(threads)
    task = pickle.loads(content)
    task.to(device)
    for job in jobs:
        try:
            answer = True, task(job)
        except Exception as error:  # noqa: BLE001 - raised again in the parent
            answer = False, error
        with contextlib.suppress(BrokenPipeError):  # the parent wants no more
            results.send(answer)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed, which could not do it itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
