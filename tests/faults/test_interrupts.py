"""Signals in the commands that do not train: 128 + n, one line, run.json says so, and nothing of the command lives on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fault_lines import EXACT, SAMPLE, SMALL, check_whole

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import GaussianMixture
from diffcli.signals import Interrupted, Interrupts, failing, held

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGHUP: 129}
NAMES = [s.name for s in SIGNALS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from diffcli.cli import main

    path = tmp_path_factory.mktemp("runs") / "moons"
    assert main(["train", *SMALL, "trainer.max_steps=2", f"out={path}"]) == 0
    assert main(["export", f"ckpt={path}/checkpoints/last.ckpt", f"out={path.parent}/model"]) == 0
    np.save(path.parent / "z.npy", np.random.default_rng(0).normal(size=(8, 2)))
    return path


def raised(monkeypatch, where, name: str, k: int, signum: int, begun: Path | None = None) -> list:
    """The k-th call of `where.name` once there is `begun` raises the signal in this process first."""
    real, calls = getattr(where, name), []

    def call(*arguments, **more):
        if begun is not None and not begun.exists():
            return real(*arguments, **more)
        calls.append(name)
        if len(calls) == k:
            signal.raise_signal(signum)
        return real(*arguments, **more)

    monkeypatch.setattr(where, name, call)
    return calls


def check_ended(result, signum: int) -> None:
    assert result.code == SIGNALS[signum], result.err
    assert "Traceback" not in result.err
    assert [line for line in result.err.splitlines() if line.startswith(("error", "interrupted"))] == [
        f"interrupted ({signal.Signals(signum).name})"
    ]


def rotated(names):
    """Each command with one of the signals, the first one with all of them."""
    rows = [(names[0], s) for s in SIGNALS]
    rows += [(name, [*SIGNALS][i % len(SIGNALS)]) for i, name in enumerate(names[1:])]
    quick = ("sample", "nll", "encode", "export", "import")
    return [
        pytest.param(name, s, id=f"{name}-{s.name}", marks=() if name in quick else pytest.mark.heavy)
        for name, s in rows
    ]


@pytest.mark.parametrize(("command", "signum"), rotated([*EXACT, "decode"]))
def test_a_signal_in_the_middle_of_the_work(command, signum, cli, trained, tmp_path, monkeypatch, injected):
    words = EXACT.get(command, [f"ckpt={trained}/checkpoints/last.ckpt", f"input={trained.parent}/z.npy", "steps=2"])
    where = (Denoiser, "evaluate") if command == "decode" else (GaussianMixture, "components")
    calls = raised(monkeypatch, *where, 2, signum, begun=tmp_path / "run/run.json")
    before = {s: signal.getsignal(s) for s in SIGNALS}
    result = cli(command, *words, "out=run")
    assert len(calls) >= 2
    check_ended(result, signum)
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "interrupted"
    check_whole(tmp_path / "run")
    assert {s: signal.getsignal(s) for s in SIGNALS} == before
    if command == "sample":
        assert cli(command, *words, "out=run", "overwrite=true").code == 0
    injected("a signal in a command that does not train", "128 + n, run.json: interrupted, one line")


@pytest.mark.parametrize(("command", "signum"), rotated(["export", "import", "explain"]))
def test_a_signal_while_files_are_written(command, signum, cli, trained, tmp_path, monkeypatch, injected):
    ckpt = f"ckpt={trained}/checkpoints/last.ckpt"
    words = {"export": [ckpt], "import": [f"path={trained.parent}/model"], "explain": EXACT["explain"]}[command]
    calls = raised(monkeypatch, os, "replace", 2, signum)
    result = cli(command, *words, "out=run")
    assert len(calls) >= 2
    check_ended(result, signum)
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "interrupted"
    check_whole(tmp_path / "run")
    injected("a signal in a command that does not train", "128 + n, run.json: interrupted, one line")


@pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
def test_a_signal_before_the_run_has_begun_leaves_nothing(signum, cli, tmp_path, monkeypatch):
    from diffcli.commands import run_folder

    raised(monkeypatch, run_folder, "FolderLock", 1, signum)
    check_ended(cli(*SAMPLE), signum)
    assert not list(tmp_path.iterdir())


def test_a_signal_that_a_library_swallows_ends_the_command_all_the_same(cli, tmp_path, monkeypatch):
    from diffcli.commands import sample

    real = sample.load_model

    def load_model(*arguments, **more):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:  # noqa: BLE001 - as an extension module does while it is loaded
            raise ImportError("initialisation failed") from None
        return real(*arguments, **more)

    monkeypatch.setattr(sample, "load_model", load_model)
    check_ended(cli(*SAMPLE), signal.SIGTERM)


def test_a_sweep_ends_and_keeps_the_jobs_that_were_done(cli, tmp_path, monkeypatch, injected):
    from diffcli.commands import sample

    raised(monkeypatch, sample, "load_model", 2, signal.SIGTERM)
    result = cli("sample", "-m", "network=exact", "n=2", "steps=1,2,3", "out=sweep")
    check_ended(result, signal.SIGTERM)
    assert {p.parent.name for p in (tmp_path / "sweep").rglob("samples.npy")} == {"0"}
    assert json.loads((tmp_path / "sweep/0/run.json").read_text())["status"] == "finished"
    assert not (tmp_path / "sweep/2").exists()
    injected("a signal in a sweep", "128 + n, the jobs done stay")


def test_ignored_signals_stay_so(monkeypatch):
    """As under nohup, and of Ctrl-C in a job that a script put in the background."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


STUCK = """
import os, signal, time
from diffcli.commands.run_folder import RunFolder
from diffcli.diffusion.exact import GaussianMixture

def stuck(self):
    open("stuck", "w").close()
    while True:
        time.sleep(0.01)

def call(*arguments, **more):
    if os.path.exists("run/run.json"):
        GaussianMixture.components = real
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **more)

real, GaussianMixture.components = GaussianMixture.components, call
RunFolder.interrupted = stuck
"""


def test_a_second_ctrl_c_ends_what_hangs_and_a_second_sigterm_does_not(start, tmp_path, injected):
    """timeout(1) and schedulers send theirs twice, and what is being saved then must not be lost."""
    found = start(*SAMPLE, "out=run", faults=STUCK)
    found.until((tmp_path / "stuck").exists)
    found.kill(signal.SIGTERM)
    found.kill(signal.SIGINT)
    assert found.wait() == 130, found.said
    assert "Traceback" not in found.said
    injected("a second Ctrl-C while the first one hangs", "ends at once")


SHARED = ["sample", "network=exact", "n=2000000", "batch_size=64", "steps=50", "devices=2", "device=cpu", "out=run"]


def session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("moment", ["start", "middle"])
@pytest.mark.parametrize(("signum", "group"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGUSR1, False)])
def test_the_other_processes_of_a_command_end_too(moment, signum, group, start, tmp_path, injected):
    found = start(*SHARED)
    found.until((tmp_path / "run/run.json").exists)
    if moment == "start":  # the first of them is being started
        found.until(lambda: len(session(found.pid)) > 1)
    else:
        found.until(lambda: any(p.stat().st_size > 10000 for p in (tmp_path / "run").rglob("*.npy")))
    others = set(session(found.pid)) - {found.pid}
    assert others
    found.kill(signum, group=group)
    assert found.wait() == SIGNALS[signum], found.said
    assert "Traceback" not in found.said, found.said
    assert found.said.count("interrupted") == 1, found.said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "interrupted"
    end = time.monotonic() + 60  # multiprocessing's own helper ends when it sees that the others are gone
    while (left := others & set(session(found.pid))) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    injected("a signal to a command on two devices", "128 + n, both processes end")


def test_a_signal_that_another_thread_takes_does_not_break_off_what_must_not_be():
    """Blocking reaches one thread alone: the kernel gives the signal to another, and Python runs the handler in the main one."""
    done, end = [], threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(Interrupted) as error, Interrupts():
            with held():
                signal.pthread_kill(other.ident, signal.SIGTERM)
                time.sleep(0.05)
                done.append("the whole of it")
            done.append("and more")
    finally:
        end.set()
        other.join()
    assert done == ["the whole of it"]
    assert error.value.signum == signal.SIGTERM


def test_once_a_failure_is_known_a_launchers_sigterm_does_not_hide_it():
    with Interrupts():
        failing()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


AT_IMPORT = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(Finder)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""
IMPORTS = ["diffcli.advice", "hydra", "omegaconf", "torch", "torch._C", "torch.nn", "numpy", "diffcli.commands.sample"]
IMPORTS += ["diffcli.commands.run_folder", "numpy._core._multiarray_umath", "torch.distributed"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("hydra", "torch._C") else pytest.mark.heavy) for n in IMPORTS]
)
def test_ctrl_c_in_the_first_seconds(name, tmp_path, injected):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.format(name=name))
    source = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), source])}
    words = [sys.executable, "-m", "diffcli", *SAMPLE, f"out={tmp_path}/run"]
    found = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert found.returncode == 130, found.stderr
    assert found.stderr == "interrupted (SIGINT)\n"
    assert not (tmp_path / "run").exists()
    injected("Ctrl-C while the program loads", "130, one line")
