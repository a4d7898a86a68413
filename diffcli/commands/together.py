"""Several processes, one training: they meet, rank 0 tells the others what to train, and none is left behind."""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.rendezvous import rendezvous

from diffcli.commands.run_folder import RunFolder
from diffcli.errors import DiffcliError
from diffcli.signals import failing
from diffcli.training.ranks import GRACE, Launched, get, look, put

if TYPE_CHECKING:
    from diffcli.training.processes import Processes
    from diffcli.training.watch import Watch

WORKER = Path(__file__).resolve().parents[1] / "_worker.py"
SET = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "WORLD_SIZE", "OMP_NUM_THREADS")
PATIENCE = 60.0  # seconds for the others to end after a training that is done


class Meeting:
    """Where the processes of a launcher find each other: a store for their whole life, in which each job has a key."""

    def __init__(self, found: Launched, timeout: float):
        self.found, self.job, self.timeout = found, 0, timeout
        limit = timedelta(seconds=timeout)
        if found.by == "torchrun":  # whose own store serves, where it has one
            self.store = PrefixStore("diffcli", next(rendezvous("env://", timeout=limit))[0])
        else:
            more = dict(is_master=found.rank == 0, wait_for_workers=False, multi_tenant=True)
            self.store = TCPStore(found.address, found.port, timeout=limit, **more)

    def say(self, word: dict) -> None:
        put(self.store, f"job{self.job}", word)

    def hear(self) -> dict:
        """What rank 0 says of this job.  Raises DiffcliError where it is gone, or says nothing for `timeout` seconds."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            try:
                word = look(self.store, f"job{self.job}")
            except RuntimeError:
                raise DiffcliError(f"rank {self.found.rank}: rank 0 has ended") from None
            if word is not None:
                return word
            time.sleep(0.1)
        raise DiffcliError(f"rank {self.found.rank}: rank 0 said nothing for {self.timeout:g} s")


_meetings: dict[Launched, Meeting] = {}


@contextlib.contextmanager
def meeting(found: Launched, timeout: float) -> Iterator[Meeting | None]:
    """The meeting for this job; None where nothing was launched beside this process.  However rank 0 ends, it says so."""
    if found.size == 1:
        yield None
        return
    here = _meetings.get(found) or _meetings.setdefault(found, Meeting(found, timeout))
    here.job += 1
    code = 0
    try:
        yield here
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        raise
    finally:
        if found.rank == 0 and look(here.store, f"job{here.job}") is None:
            here.say({"code": code})


@contextlib.contextmanager
def running(
    trainer,
    path: Path,
    config: dict,
    resume: Path | None,
    here: Meeting | None,
    folder: RunFolder | None,
) -> Iterator[None]:
    """Around `trainer.fit`: the other ranks are started or told, all are there before it begins, and none outlives it.

    Raises DiffcliError, which names the rank, where another one fails, dies or does not come.
    """
    from diffcli.training.processes import Processes

    processes = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(processes, Processes):
        yield
        return
    if processes.rank:  # `watched` already, since before its parts were built
        put(processes.store, f"ready/{processes.rank}", True)
        with _environment(processes):
            trainer.callbacks.insert(0, processes.watch)
            yield
        return
    processes.open(config["timeout"])
    words = {"config": OmegaConf.to_yaml(config), "path": str(path.resolve())}
    put(processes.store, "work", words | {"resume": str(resume.resolve()) if resume else None})
    with _environment(processes), watched(processes, config["timeout"], folder) as watch:
        if here is not None:
            here.say({"port": processes.main_port, "size": processes.size})
        _wait_for_all(processes, watch, config["timeout"])
        trainer.callbacks.insert(0, watch)
        yield


def work(processes: "Processes") -> tuple[dict, Path, Path | None]:
    """What rank 0 has said is to be done: the config, the run's folder, and the checkpoint to go on from."""
    words = get(processes.store, "work")
    config = OmegaConf.to_container(OmegaConf.create(words["config"]))
    return config, Path(words["path"]), Path(words["resume"]) if words["resume"] else None


def _wait_for_all(processes: "Processes", watch: "Watch", timeout: float) -> None:
    end, missing = time.monotonic() + timeout, set(range(1, processes.size))
    while missing:
        missing -= {rank for rank in missing if processes.store.check([f"ready/{rank}"])}
        watch.raise_failure()
        if missing and time.monotonic() > end:
            raise DiffcliError(f"rank {min(missing)} was not ready within {timeout:g} s", "timeout=SECONDS allows more")
        time.sleep(0.05)


@contextlib.contextmanager
def watched(processes: "Processes", timeout: float, folder: RunFolder | None = None) -> Iterator["Watch"]:
    """This rank and the processes it starts, under watch; at the end all have left, or are ended."""
    from diffcli.training.watch import Watch

    children = _start(processes)
    processes.watch = watch = Watch(processes, timeout, children, functools.partial(_last_words, folder))
    patience, failed = PATIENCE, False
    try:
        watch.start()
        yield watch
    except Exception as error:
        patience, failed = GRACE + 3, True
        failing()
        cause = watch.cause(error)
        if cause is None:
            raise
        raise cause from error
    except BaseException:
        patience = 0
        raise
    finally:
        watch.stop()
        _leave(processes, children, patience, failed)


def _last_words(folder: RunFolder | None, error: DiffcliError) -> None:
    """What `recorded` and the command line would have done with a failure, where the main thread can no longer be reached."""
    if folder is not None:
        folder.failed(error)
    print(f"error: {error.message}", f"try: {error.hint}", sep="\n", file=sys.stderr, flush=True)


def _leave(processes: "Processes", children: list, patience: float, failed: bool) -> None:
    """Rank 0 goes last, since the store goes with it; what it started and does not end is killed."""
    with contextlib.suppress(RuntimeError):  # the store has ended with rank 0
        if processes.rank:
            put(processes.store, f"left/{processes.rank}", True)
            _until(lambda: not failed or processes.store.check(["closed"]), 2 * GRACE)
        else:
            dead = dict(children)
            _until(
                lambda: all(_has_left(processes, rank, dead.get(rank)) for rank in range(1, processes.size)), patience
            )
            put(processes.store, "closed", True)
    _until(lambda: all(process.poll() is not None for _, process in children), min(patience, GRACE))
    for _, process in children:
        if process.poll() is None:
            process.kill()
        process.wait()


def _has_left(processes: "Processes", rank: int, process) -> bool:
    return (process is not None and process.poll() is not None) or processes.store.check([f"left/{rank}"])


def _until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


def _start(processes: "Processes") -> list[tuple[int, subprocess.Popen]]:
    """The other ranks of this node, where no launcher has started them; each learns its place from its environment."""
    children = []
    for local in range(1, processes.others + 1):
        rank = processes.rank + local
        place = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": processes.size, "NODE_RANK": processes.node}
        environment = os.environ | processes.environment() | {key: str(value) for key, value in place.items()}
        children.append((rank, subprocess.Popen([sys.executable, str(WORKER)], env=environment)))
    return children


@contextlib.contextmanager
def _environment(processes: "Processes") -> Iterator[None]:
    """What torch reads of a rank, and nothing of it afterwards: the next job of a sweep has its own."""
    before, threads = {name: os.environ.get(name) for name in SET}, torch.get_num_threads()
    os.environ.update(processes.environment())
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
