"""sample, nll and evaluate that were killed, stopped or out of space go on where they were, to the same result."""

import importlib.util
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from diffcli.commands.partial import Partial

spec = importlib.util.spec_from_file_location("forked", Path(__file__).with_name("forked.py"))
forked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forked)

MODEL = ("network=exact", "data=mixture", "data.n=90", "batch_size=16")
COMMANDS = {
    "sample": ("sample", *MODEL, "n=83", "sampler=ancestral", "steps=2"),
    "nll": ("nll", *MODEL, "n=83", "likelihood.solver=rk4", "likelihood.steps=2", "also=elbo", "elbo.times=4"),
    "evaluate": ("evaluate", *MODEL, "n=40", "repeats=2", "steps=2", "neighbours=false", "keep_samples=true"),
}
UNLIKE = {"measuring_seconds", "sampling_seconds", "cpu_seconds", "peak_memory"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def result(out):
    """All that the run left: the bytes of its files, and the figures of its record."""
    folder = Path(out)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and not (folder / "partial").exists()
    found = {name: (folder / name).read_bytes() for name in ("samples.npy", "nll.csv") if (folder / name).exists()}
    if (folder / "card.json").exists():
        found["card"] = {k: v for k, v in json.loads((folder / "card.json").read_text()).items() if k != "made"}
    found["results"] = {k: v for k, v in record["results"].items() if k not in UNLIKE}
    assert len(found) > 1
    return found | {"nfe": record["nfe"], "steps": record["steps"]}


def ends(signum, rows, torn=False):
    """To be done before a command: it gets the signal when so many rows are on disk, or in the middle of a write of the next."""

    def before():
        append, write = Partial.append, Partial._write

        def appended(self, **columns):
            append(self, **columns)
            if self.rows >= rows and not torn:
                os.kill(os.getpid(), signum)

        def written(self, name, data):
            if torn and self.rows >= rows and name == self.columns[1]:
                os.write(self._files[name], data[: len(data) // 2 + 1])
                os.kill(os.getpid(), signum)
            write(self, name, data)

        Partial.append, Partial._write = appended, written

    return before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_goes_on_to_the_same_result(cli, command, injected):
    """In the middle of a write, whose rows are then whole in one column and torn in the next."""
    words = COMMANDS[command]
    assert cli(*words, "out=whole").code == 0
    assert forked.run(*words, "out=run", before=ends(signal.SIGKILL, 48, torn=True))[0] == 137
    sizes = {path.name: path.stat().st_size for path in Path("run/partial").glob("*.npy")}
    assert len(sizes) >= 2
    done = cli(*words, "out=run", "resume=auto")
    assert done.code == 0, done.err
    assert f"going on at {'item' if command == 'nll' else 'sample'} 48 of" in done.out
    assert result("run") == result("whole")
    before = {path: path.stat().st_mtime_ns for path in Path("run").iterdir()}
    again = cli(*words, "out=run", "resume=auto")
    assert again.code == 0 and "has finished already" in again.out
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").iterdir()}
    injected(
        "kill -9 of sample, nll, evaluate in the middle of a write",
        "goes on, to the same bytes",
    )


@pytest.mark.parametrize(
    ("command", "rows"),
    [("sample", 64)]
    + [
        pytest.param(c, rows, marks=pytest.mark.heavy)
        for c in COMMANDS
        for rows in (16, 80, 83)
        if (c, rows) != ("evaluate", 83)
    ],
)
def test_a_stopped_run_says_how_to_go_on_and_does(cli, command, rows, injected):
    words, signum = COMMANDS[command], signal.SIGTERM
    assert cli(*words, "out=whole").code == 0
    code, _ = forked.run(*words, "out=run", before=ends(signum, rows))
    assert code == 128 + signum
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    done = cli(*words, "out=run", "resume=auto", "batch_size=32")  # which changes nothing in the result
    assert done.code == 0, done.err
    assert ("going on at" in done.out) == (rows >= 32)  # whole batches of the new size
    assert result("run") == result("whole")
    injected("SIGTERM to sample, nll, evaluate", "128+n, goes on, to the same bytes")


@pytest.mark.heavy
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_on_two_devices_goes_on_on_one_and_on_two(cli, command, signum, injected):
    words = COMMANDS[command]
    assert cli(*words, "out=whole").code == 0
    assert forked.run(*words, "devices=2", "out=run", before=ends(signum, 32))[0] == 128 + signum
    assert cli(*words, "devices=1" if signum == signal.SIGKILL else "devices=2", "out=run", "resume=auto").code == 0
    assert result("run") == result("whole")
    injected("kill -9, SIGTERM with devices=2", "goes on on any number, to the same bytes")


def test_a_full_disk_loses_nothing_that_was_drawn(cli, capfd, injected):
    """The system itself refuses, in the middle of a row."""
    words = ("sample", "network=exact", "data=mixture", "n=3000", "steps=1", "sampler=ddim")
    assert cli(*words, "out=whole").code == 0

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_501, 15_501))

    code, _ = forked.run(*words, "out=run", before=full)
    err = capfd.readouterr().err
    assert code == 1 and "run/partial/samples.npy" in err and "free" in err and "resume=auto" in err
    assert "Traceback" not in err
    done = cli(*words, "out=run", "resume=auto")
    assert done.code == 0 and "going on at sample 1920 of 3000" in done.out, done.err + done.out
    assert result("run") == result("whole")
    injected("no space for the rows of sample", "exit 1 with path and free space; goes on")


@pytest.mark.parametrize("at", ["finish", pytest.param("remove", marks=pytest.mark.heavy)])
def test_a_run_killed_in_its_last_step_draws_nothing_again(cli, at):
    words = COMMANDS["sample"]
    assert cli(*words, "out=whole").code == 0

    def before():
        real = getattr(Partial, at)

        def killed(self):
            if at == "finish" or json.loads(Path("run/run.json").read_text())["status"] == "finished":
                if at == "finish":
                    real(self)
                os.kill(os.getpid(), signal.SIGKILL)
            real(self)

        setattr(Partial, at, killed)

    assert forked.run(*words, "out=run", before=before)[0] == 137
    assert np.load("run/samples.npy").shape == (83, 2)
    done = cli(*words, "out=run", "resume=auto")
    assert done.code == 0, done.err
    assert ("going on at sample 83 of 83" if at == "finish" else "has finished already") in done.out
    assert Path("run/samples.npy").read_bytes() == Path("whole/samples.npy").read_bytes()
