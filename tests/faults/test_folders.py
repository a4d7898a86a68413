"""One writer a folder, a folder for each start, and outputs that cannot be written: exit 1, a sentence, earlier files whole."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fault_lines import EXACT, SAMPLE, SMALL, check_whole

from diffcli.commands import folder_lock, run_folder
from diffcli.commands.common import recorded
from diffcli.commands.folder_lock import NAME, FolderLock
from diffcli.errors import DiffcliError, UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from diffcli.cli import main

    path = tmp_path_factory.mktemp("runs") / "moons"
    assert main(["train", *SMALL, "network.width=32", "trainer.max_steps=2", f"out={path}"]) == 0
    return path


@pytest.fixture
def exported(trained, tmp_path):
    from diffcli.cli import main

    assert main(["export", f"ckpt={trained}/checkpoints/last.ckpt", f"out={tmp_path}/model"]) == 0
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_sentence(result, *words: str) -> None:
    lines = [line for line in result.err.splitlines() if line.startswith(("error: ", "try: "))]
    assert result.code == 1, result.err
    assert "Traceback" not in result.err
    assert [line.partition(": ")[0] for line in lines] in (["error"], ["error", "try"]), result.err
    for word in words:
        assert word in lines[0]


def refuse_flock(path: Path) -> bool:
    try:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


# one writer


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_leaves_it_free(start, cli, tmp_path, injected):
    line = ["train", *SMALL, "checkpoint.every=20", "workers=1", "resident=0", "out=run"]
    first = start(*line, "trainer.max_steps=10000000")
    first.until((tmp_path / "run/checkpoints/last.ckpt").exists)
    os.kill(first.pid, signal.SIGSTOP)  # so that what it writes does not change between the two looks
    before = contents(tmp_path / "run")
    seconds = [
        [*line, "trainer.max_steps=40", "resume_allow=[trainer.max_steps]", *more]
        for more in ([], ["resume=auto"], ["overwrite=true"])
    ]
    for words in [*seconds, [*SAMPLE, "out=run", "overwrite=true"]]:
        result = cli(*words)
        assert result.code == 2, result.err
        assert len([line for line in result.err.splitlines() if line.startswith("error: ")]) == 1
        if words[-1] in ("resume=auto", "overwrite=true"):  # without, it is refused for holding a run at all
            assert f"process {first.pid} on " in result.err
    assert contents(tmp_path / "run") == before
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    assert children, "it has no data worker"
    for child in children:
        os.kill(int(child), signal.SIGSTOP)  # it would end with its parent by itself, in some seconds
    first.kill()
    first.wait()
    try:
        assert all(Path(f"/proc/{child}").exists() for child in children)
        result = cli(*line, "trainer.max_steps=20", "overwrite=true")
        assert result.code == 0, result.err
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    check_whole(tmp_path / "run")
    injected("two runs in one folder", "the second is refused with the first one's process and host", n=4, survived=4)
    injected("a run killed while its data workers live on", "its folder is free", stock=stock_lock(tmp_path))


def stock_lock(tmp_path: Path) -> str:
    """What flock does of the same: the worker that was forked holds it on."""
    path = tmp_path / "flock"
    holder = os.fork()
    if holder == 0:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        worker = os.fork()
        if worker:
            (tmp_path / "worker").write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    os.waitpid(holder, 0)
    try:
        assert refuse_flock(path)
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
    return "flock: held by the worker"


def test_a_lock_is_freed_once_and_never_by_another_of_its_process(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(UsageError, match="this one"):
        FolderLock(tmp_path)
    assert locked_for_others(tmp_path), "the refused one has freed it"
    lock.free()
    lock.free()
    assert not list(tmp_path.iterdir())
    FolderLock(tmp_path).free()


def locked_for_others(folder: Path) -> bool:
    child = os.fork()
    if child == 0:
        code = 3
        folder_lock._held.clear()  # what the copy knows of the locks of the process that it is a copy of
        try:
            FolderLock(folder)
            code = 0
        except UsageError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_lock_taken_on_a_file_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    real, calls = fcntl.lockf, []

    def lockf(file, how):
        if not calls:
            (tmp_path / NAME).unlink()  # as its holder does at its end, between our open and our lock
        calls.append(how)
        real(file, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    lock = FolderLock(tmp_path)
    assert len(calls) == 2
    assert lock.mine()
    lock.free()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def lockf(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    lock = FolderLock(tmp_path)
    assert "warning: no locks" in capsys.readouterr().err
    lock.free()


def test_a_run_that_ended_while_this_one_started_is_not_overwritten(cli, start, tmp_path, monkeypatch, injected):
    """Two resume=auto of one moment: the second has looked before the first began, and gets the lock after it ended."""
    from diffcli.commands import train

    line, real = ["train", *SMALL, "out=run", "resume=auto"], train.create

    def create(*arguments, **more):
        monkeypatch.setattr(train, "create", real)
        assert start(*line, "trainer.max_steps=4").wait() == 0
        return real(*arguments, **more)

    monkeypatch.setattr(train, "create", create)
    result = cli(*line, "trainer.max_steps=2")
    assert result.code == 2, result.err
    assert "another run has ended there" in result.err
    assert json.loads((tmp_path / "run/run.json").read_text())["steps"] == 4
    check_whole(tmp_path / "run")
    injected("two resume=auto in one moment", "one trains, the other is refused")


# forty starts


def _start_one(barrier, names):
    barrier.wait()
    folder = run_folder.create(run_folder.choose("train", CONFIG), "train", CONFIG)
    names.put(str(folder.path))
    barrier.wait()


CONFIG = {"out": None, "overwrite": False, "seed": 0, "dry_run": False}
STARTS = 40


def test_forty_starts_of_one_moment_get_forty_folders(tmp_path, monkeypatch, injected):
    monkeypatch.chdir(tmp_path)
    for name, value in {"new_name": "now", "git": None, "versions": {}, "hardware": {}}.items():
        monkeypatch.setattr(run_folder, name, lambda value=value: value)
    context = multiprocessing.get_context("fork")
    barrier, names = context.Barrier(STARTS), context.SimpleQueue()
    started = [context.Process(target=_start_one, args=(barrier, names)) for _ in range(STARTS)]
    for process in started:
        process.start()
    found = {names.get() for _ in started}
    for process in started:
        process.join()
    assert [p.exitcode for p in started] == [0] * STARTS
    assert len(found) == STARTS
    assert {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("run.json")} == found
    injected("starts of one microsecond", "a folder each", n=STARTS, survived=len(found))


def test_sweeps_of_one_moment_get_folders_of_their_own(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "new_name", lambda: "now")
    for _ in range(2):
        assert cli("sample", "-m", "network=exact", "n=2", "steps=1,2").code == 0
    assert {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("run.json")} == {
        f"outputs/sample/{name}/{job}" for name in ("now", "now-2") for job in "01"
    }


def test_a_refused_start_leaves_no_reserved_folder(cli, tmp_path):
    assert cli(*SAMPLE, "dry_run=true").code == 0
    assert cli(*SAMPLE, "trajectory=true", "devices=2").code == 2
    assert not list(tmp_path.iterdir())


# outputs that cannot be written


@contextlib.contextmanager
def failing(k: int, act):
    """From its k-th call on, giving a file its final name calls `act` first; yields the names."""
    real, names = os.replace, []

    def replace(source, target, **more):
        names.append(Path(target))
        if len(names) >= k:
            act(Path(target))
        return real(source, target, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield names


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_only(path: Path) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def at_every_file(cli, tmp_path, words, act, check) -> int:
    """The command again and again, each time with one file more before the first that fails; how many there are."""
    if words[0] == "evaluate":  # what it keeps of the data is not the run's, and cannot fail it
        assert cli(*words, f"out={tmp_path}/0").code == 0
    for k in range(1, 40):
        with failing(k, act) as names:
            result = cli(*words, f"out={tmp_path}/{k}")
        if len(names) < k:
            assert result.code == 0, result.err
            return k - 1
        check(result, tmp_path / str(k), names[:k])
    raise AssertionError("the command writes more files than that")


@pytest.mark.parametrize("command", [pytest.param(c, marks=() if c == "sample" else pytest.mark.heavy) for c in EXACT])
def test_a_disk_that_fills_at_any_file(command, cli, tmp_path, injected):
    def check(result, folder, written):
        check_sentence(result, str(written[-1]), "No space left on device", " free there")
        if folder.exists():
            check_whole(folder)
            assert {p.name for p in written[:-1]} <= {p.name for p in folder.rglob("*")}
        assert folder.exists() == (len(written) > 1)

    n = at_every_file(cli, tmp_path, [command, *EXACT[command]], full, check)
    assert n >= 3
    injected("disk full at a file of a command", "exit 1, the path and its free space, earlier files whole", n, n)


def test_an_output_that_goes_read_only(cli, tmp_path, injected):
    def check(result, folder, written):
        check_sentence(result, str(written[-1]), "Read-only file system", " free there")

    n = at_every_file(cli, tmp_path, SAMPLE, read_only, check)
    injected("output read-only", "exit 1, the path and its free space, earlier files whole", n, n)


@pytest.mark.parametrize("command", [pytest.param(c, marks=() if c == "sample" else pytest.mark.heavy) for c in EXACT])
def test_a_folder_that_vanishes_is_not_made_anew(command, cli, tmp_path, injected):
    def vanish(path: Path) -> None:
        shutil.rmtree(next(p for p in path.parents if p.parent == tmp_path), ignore_errors=True)

    def check(result, folder, written):
        check_sentence(result, str(folder))
        assert not folder.exists()

    n = at_every_file(cli, tmp_path, [command, *EXACT[command]], vanish, check)
    injected("run folder removed in the middle", "exit 1, not made anew", n, n)


LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
"""


@pytest.mark.heavy
@pytest.mark.parametrize("command", [*sorted({*EXACT} - {"nll"}), "train", "import", "export", "decode"])
def test_a_file_that_the_system_cuts_off(command, start, trained, exported, tmp_path, injected):
    """Where the system itself refuses bytes (ulimit -f), in the middle of a file, by whatever writes it."""
    ckpt = f"ckpt={trained}/checkpoints/last.ckpt"
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(2000, 2)))
    words = EXACT | {
        "train": [*SMALL, "network.width=64", "trainer.max_steps=2"],
        "import": [f"path={exported}"],
        "export": [ckpt],
        "decode": [ckpt, "input=z.npy", "steps=1"],
    }
    found = start(command, *words[command], "out=run", faults=LIMIT)
    code = found.wait()
    assert "Traceback" not in found.said
    (line,) = [line for line in found.said.splitlines() if line.startswith("error: ")]
    assert code == 1, found.said
    assert str(Path("run")) in line
    assert " free there)" in line
    check_whole(tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    injected("a file cut off by the system", "exit 1, the path and its free space, earlier files whole")


@pytest.mark.parametrize("what", ["lock", "record"])
def test_an_earlier_run_stays_where_its_successor_cannot_begin(what, cli, tmp_path, monkeypatch, injected):
    """overwrite=true removes nothing before the new run has written its first file."""
    assert cli(*SAMPLE, "out=run").code == 0
    before = contents(tmp_path / "run")
    if what == "lock":
        monkeypatch.setattr(os, "write", lambda *_: full(tmp_path / "run" / NAME))
    else:
        monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: full(path))
    result = cli(*SAMPLE, "out=run", "overwrite=true")
    monkeypatch.undo()
    check_sentence(result, "run", "No space left on device", " free there")
    assert contents(tmp_path / "run") == before
    injected("overwrite=true on a full disk", "the earlier run stays as it was")


def test_an_output_below_a_file(cli, tmp_path, injected):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "outputs").write_text("mine")
    for words, name in (([*SAMPLE, "out=file/run"], "file/run"), (SAMPLE, "outputs/sample")):
        check_sentence(cli(*words), name, " free there")
    check_sentence(cli("sample", "-m", "network=exact", "n=2,3"), "outputs/sample", " free there")
    assert contents(tmp_path) == {"file": b"mine", "outputs": b"mine"}
    injected("a file in the place of the folder", "exit 1, the file stays", n=3, survived=3)


def test_standard_output_that_is_full(cli, start, tmp_path, injected):
    environment = os.environ | {"PYTHONPATH": str(Path(run_folder.__file__).parents[2])}
    with open("/dev/full", "w") as nowhere:
        found = subprocess.run(
            [sys.executable, "-m", "diffcli", "--help"],
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    found.code, found.err = found.returncode, found.stderr
    check_sentence(found, "standard output", "No space left on device")
    found = start(*SAMPLE, "out=run", faults="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    assert found.wait() == 1, found.said
    assert found.said.startswith("error: cannot write to standard output")
    assert len(found.said.splitlines()) <= 2
    check_whole(tmp_path / "run")
    injected("standard output full", "exit 1, the results are there", n=2, survived=2)


# what the record does with the folder


def made(path: Path, **more) -> run_folder.RunFolder:
    return run_folder.create(path, "train", CONFIG, **more)


def test_a_run_that_cannot_go_on_leaves_what_it_found(tmp_path):
    with recorded(made(tmp_path / "run")):
        (tmp_path / "run/checkpoints").mkdir()
        (tmp_path / "run/checkpoints/last.ckpt").write_text("weights")
    before = contents(tmp_path)
    with pytest.raises(UsageError), recorded(made(tmp_path / "run", keep=True)):
        raise UsageError("no")
    assert contents(tmp_path) == before
    with pytest.raises(UsageError), recorded(made(tmp_path / "new/deep")):
        raise UsageError("no")
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keep", [False, True])
def test_a_refusal_in_the_middle_of_a_run_costs_nothing_that_was_done(keep, tmp_path):
    """As of a picture that cannot be decoded, at step 100,000."""
    with recorded(made(tmp_path / "run")):
        (tmp_path / "run/checkpoints").mkdir()
    begun = made(tmp_path / "run", keep=keep) if keep else made(tmp_path / "new")
    with pytest.raises(DiffcliError) as caught, recorded(begun):
        path = tmp_path / ("run" if keep else "new")
        (path / "checkpoints").mkdir(exist_ok=True)
        (path / "checkpoints/last.ckpt").write_text("weights")
        raise UsageError("no picture", "remove it")
    # of a run that was refused 2 would say that nothing was started
    assert (caught.value.exit_code, caught.value.message, caught.value.hint) == (1, "no picture", "remove it")
    assert (path / "checkpoints/last.ckpt").read_text() == "weights"
    record = json.loads((path / "run.json").read_text())
    assert (record["status"], record["results"]) == ("failed", {"error": "no picture"})


def test_a_folder_made_anew_by_another_run_is_left_to_it(tmp_path):
    folder = made(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(DiffcliError, match="no longer there"):
        folder.write("finished")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).write_text("process 1 on other")
    (tmp_path / "run/run.json").write_text("theirs")
    with pytest.raises(DiffcliError, match="no longer this run's"):
        folder.write("finished")
    folder.failed(ValueError("x"))
    folder.release()
    assert contents(tmp_path / "run") == {NAME: b"process 1 on other", "run.json": b"theirs"}
