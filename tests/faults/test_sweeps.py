"""One job of a sweep that fails, is refused or is killed leaves the others; a signal ends all of them."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from diffcli.commands import launchers
from diffcli.commands.job import Job
from diffcli.signals import SIGNALS, Interrupts

LONG, SHORT = 10**6, 400  # steps: of a job that is ended by what the test does, of one that may finish
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
SAMPLE = ["sample", "-m", "network=exact", "data=mixture", "n=4", "png=false", "sampler=ddim"]
TINY = ["data=moons", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=8", "preview.every=0"]
PATIENCE = 180
BOTH = ["joblib", pytest.param("submitit_local", marks=pytest.mark.heavy)]


def record(folder):
    try:
        return json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        return {}


def until(happened, process):
    for _ in range(PATIENCE * 10):
        if found := happened():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def writer(folder):
    """The process of the run there, from its lock; 0 before the run has begun."""
    try:
        return int((folder / ".lock").read_text().split()[1]) if (folder / "run.json").exists() else 0
    except (FileNotFoundError, IndexError):
        return 0


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def sweep(tmp_path):
    """sweep(words…) -> the process of a sweep into tmp_path/s, in a group of its own that is ended with the test."""
    started = []

    def start(*words):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "diffcli", *words, "out=s"],
            cwd=tmp_path, env=environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for path in (tmp_path / "s").glob("*/.lock"):
            pid = writer(path.parent)
            if pid and alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_refused_job_leaves_the_others(cli, tmp_path, injected):
    done = cli(*SAMPLE, "steps=2,0,3", "out=s")
    assert done.code == 2
    assert [record(tmp_path / f"s/{i}").get("status") for i in range(3)] == ["finished", None, "finished"]
    assert "2 of 3 jobs ended well" in done.out
    told = cli("report", "dir=s")
    assert told.code == 0
    assert "1 refused (steps=0): steps must be at least 1, got 0" in told.out
    assert "got 0" in (tmp_path / "s/report.md").read_text() and "got 0" in (tmp_path / "s/report.csv").read_text()
    injected("a sweep's job with a bad value", "the others finish, exit 2, the report names it")


def test_a_sweep_of_which_nothing_began_leaves_nothing(cli, tmp_path):
    assert cli(*SAMPLE, "steps=0,-1", "out=s").code == 2
    assert not (tmp_path / "s").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_killed_job_leaves_the_others(launcher, sweep, cli, tmp_path, injected):
    process = sweep(*SAMPLE, f"steps={LONG},{SHORT},{SHORT}", *LAUNCHERS[launcher])
    pid = until(lambda: writer(tmp_path / "s/0"), process)
    assert pid != process.pid, "it runs where the sweep does"
    assert record(tmp_path / "s/2").get("status") != "finished"
    os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == (137 if launcher == "joblib" else 1), out
    assert [record(tmp_path / f"s/{i}")["status"] for i in range(3)] == ["failed", "finished", "finished"], out
    assert "2 of 3 jobs ended well" in out
    told = cli("report", "dir=s")
    assert told.code == 0
    assert f"0 failed (steps={LONG}): {record(tmp_path / 's/0')['results']['error']}" in told.out
    stock = {
        "joblib": "a killed worker takes all others along",
        "submitit_local": "the first lost job ends the wait for all",
    }
    injected("kill -9 of a sweep's job", "the others finish, the report names it", stock=stock[launcher])


@pytest.mark.parametrize("launcher", BOTH)
@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)])
def test_a_signal_to_the_sweep_ends_all_jobs(launcher, signum, sweep, tmp_path, injected):
    process = sweep(*SAMPLE, f"steps={LONG},{LONG - 1}", *LAUNCHERS[launcher])
    pids = [until(lambda i=i: writer(tmp_path / f"s/{i}"), process) for i in range(2)]
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # Ctrl-C: the whole group of the terminal
    else:
        process.send_signal(signum)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signum, out
    assert not any(map(alive, pids)), out
    assert [record(tmp_path / f"s/{i}")["status"] for i in range(2)] == ["interrupted", "interrupted"], out
    injected("SIGTERM or Ctrl-C to a sweep", "all jobs end, exit 128+n")


def never(*_):
    raise AssertionError("it is not run here")


def test_a_signal_while_a_job_is_being_started_reaches_it(monkeypatch, injected):
    """With n_jobs=1 the thread that starts jobs is the one that signals come to."""
    real = subprocess.Popen
    monkeypatch.setattr(launchers, "_job_config", lambda *_: None)
    monkeypatch.setattr(launchers, "outcome_of", lambda command, config, overrides, code: code)

    def start(*_, **more):
        job.send(signal.SIGTERM)
        return real([sys.executable, "-c", "import time; time.sleep(600)"], **more)

    job = launchers._Process(SimpleNamespace(hydra_context=None), Job("sample", never), [], 0)
    monkeypatch.setattr(subprocess, "Popen", start)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(job()), daemon=True)
    thread.start()
    thread.join(60)
    assert codes == [-signal.SIGTERM]
    injected("a signal while a job of a sweep is started", "the job ends")


def test_a_signal_while_jobs_are_submitted_reaches_them(monkeypatch, injected):
    import submitit

    told = []
    job = SimpleNamespace(job_id="7", paths=submitit.core.utils.JobPaths("jobs", "7"), results=lambda: [None])
    job.cancel = lambda check: told.append(check)

    def map_array(self, *_):
        signal.raise_signal(signal.SIGTERM)
        return [job]

    def launch(job_overrides, initial_job_idx):
        return [job.results()[0] for job in submitit.AutoExecutor.map_array(None)]

    monkeypatch.setattr(launchers, "_job_config", lambda *_: None)
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", map_array)
    task = Job("sample", never)
    with pytest.raises(AttributeError), Interrupts():  # None is no JobReturn
        launchers.submitted(SimpleNamespace(params={}), launch, task, [["n=1"]], 0)
    assert told == [False] and task.signum == signal.SIGTERM
    injected("a signal while a job of a sweep is started", "the job ends")


def test_every_signal_is_passed_on_but_the_end_of_a_terminal_to_jobs_of_a_cluster():
    task, sent, ended = Job("sample", never), [], []
    with launchers._passed_on(task, sent.append):
        for signum in SIGNALS:
            signal.raise_signal(signum)
    assert sent == list(SIGNALS) and task.signum == SIGNALS[0]
    previous = signal.signal(signal.SIGHUP, lambda *_: ended.append(1))
    try:
        with launchers._passed_on(task, sent.append, but=(signal.SIGHUP,)):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert ended and sent == list(SIGNALS)


# What submitit asks of SLURM: sbatch answers with a number and starts each job of an array, srun starts its one task, sacct
# tells their states, scancel ends one.
SBATCH = """
import os, re, subprocess, sys
script = sys.argv[-1]
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\\S*)", open(script).read(), re.M))
open("options", "w").write(repr(options))
for i in range(int(options["array"].partition("%")[0].rpartition("-")[2]) + 1):
    env = {"SLURM_JOB_ID": str(80 + i), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(i), "SLURM_JOB_NODELIST": "here"}
    env |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": options["job-name"]}
    subprocess.Popen(["bash", script], env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 77")
"""
SRUN = """
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    del words[: 2 if words[0] in ("--output", "--error") else 1]
open("task" + os.environ["SLURM_ARRAY_TASK_ID"], "w").write(str(os.getpid()))
os.environ |= {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
os.execvp(words[0], words)
"""
SCANCEL = "import os, sys; os.kill(int(open('task' + sys.argv[1].partition('_')[2]).read()), 15)"
SACCT = "print('JobID|State|NodeList')"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, source in {"sbatch": SBATCH, "srun": SRUN, "scancel": SCANCEL, "sacct": SACCT}.items():
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\n{source}")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return lambda: dict(ast.literal_eval((tmp_path / "options").read_text()))


@pytest.mark.heavy
def test_jobs_of_slurm_are_jobs_of_a_sweep(slurm, sweep, tmp_path, injected):
    process = sweep(*SAMPLE, "steps=2,0,3", "hydra/launcher=submitit_slurm")
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, out
    assert "2 of 3 jobs ended well" in out and "job 1, exit code 2: steps must be at least 1, got 0" in out
    assert [record(tmp_path / f"s/{i}").get("status") for i in range(3)] == ["finished", None, "finished"]
    assert slurm()["time"] == "1440", "submitit's own hour would end a training"
    injected("a sweep's job with a bad value", "the others finish, exit 2, the report names it")


@pytest.mark.heavy
def test_a_stopped_sweep_cancels_its_jobs_of_slurm(slurm, sweep, tmp_path, injected):
    process = sweep(
        *SAMPLE, f"steps={LONG},{LONG - 1}", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=90"
    )
    pids = [until(lambda i=i: writer(tmp_path / f"s/{i}"), process) for i in range(2)]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, out
    assert [record(tmp_path / f"s/{i}")["status"] for i in range(2)] == ["interrupted", "interrupted"], out
    for pid in pids:
        until(lambda pid=pid: not alive(pid), SimpleNamespace(poll=lambda: None))
    assert slurm()["time"] == "90"
    injected("SIGTERM or Ctrl-C to a sweep", "all jobs end, exit 128+n")


def test_a_training_on_slurm_is_queued_again_where_its_time_is_up():
    stock = {"timeout_min": 60, "max_num_timeout": 0, "nodes": 1}
    assert launchers._usual(stock, "train") == {"timeout_min": 1440, "max_num_timeout": 10}
    assert launchers._usual(stock, "sample") == {"timeout_min": 1440, "max_num_timeout": 10}
    assert launchers._usual(stock, "compare") == {"timeout_min": 1440, "max_num_timeout": 0}
    assert launchers._usual({"timeout_min": 30, "max_num_timeout": 2}, "train") == {}


@pytest.mark.heavy
def test_a_killed_sweep_leaves_no_job_of_joblib_behind(sweep, tmp_path, injected):
    process = sweep(*SAMPLE, f"steps={LONG},{LONG - 1}", *LAUNCHERS["joblib"])
    pids = [until(lambda i=i: writer(tmp_path / f"s/{i}"), process) for i in range(2)]
    process.kill()
    process.wait()
    for _ in range(PATIENCE * 10):
        if not any(map(alive, pids)):
            break
        time.sleep(0.1)
    assert [record(tmp_path / f"s/{i}")["status"] for i in range(2)] == ["interrupted", "interrupted"]
    injected("kill -9 of a sweep", "its jobs end as by SIGTERM")


@pytest.mark.heavy
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_trainings_of_a_sweep_save_when_it_is_stopped(launcher, sweep, tmp_path, injected):
    words = ["train", "-m", *TINY, f"trainer.max_steps={LONG}", "trainer.val_check_interval=100000", "seed=0,1"]
    process = sweep(*words, *LAUNCHERS[launcher])
    for i in range(2):
        rows = tmp_path / f"s/{i}/metrics.csv"
        until(lambda rows=rows: rows.exists() and len(rows.read_text().splitlines()) > 2, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, out
    for i in range(2):
        assert record(tmp_path / f"s/{i}")["status"] == "stopped", out
        assert (tmp_path / f"s/{i}/checkpoints/last.ckpt").exists()
    injected("SIGTERM or Ctrl-C to a sweep", "all jobs end, exit 128+n")


@pytest.mark.heavy
def test_a_training_that_diverges_leaves_the_others(cli, tmp_path, injected):
    words = [
        *TINY,
        "trainer.max_steps=60",
        "trainer.val_check_interval=60",
        "optim=adam",
        "optim.warmup=0",
        "trainer.gradient_clip_val=null",
    ]
    done = cli("train", "-m", *words, "optim.lr=1e-3,1e30,2e-3", "out=s")
    assert done.code == 4, done.err
    assert [record(tmp_path / f"s/{i}")["status"] for i in range(3)] == ["finished", "failed", "finished"]
    told = cli("report", "dir=s")
    assert "1 failed (optim.lr=1e+30)" in told.out
    head, first, second = [line for line in told.out.splitlines() if line.startswith("  ")][:3]
    figures = [record(tmp_path / f"s/{line.split()[0]}")["results"]["val_loss"] for line in (first, second)]
    assert "val_loss" in head and figures == sorted(figures)
    injected("a training of a sweep that diverges", "the others finish, exit 4, the report names it")


@pytest.mark.heavy
def test_stock_parts_let_one_death_end_the_others(tmp_path):
    """What the launchers rest on: joblib's own processes are one pool, and submitit's first lost result ends the wait."""
    import submitit
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    def job(i, folder):
        (folder / f"begun{i}").touch()
        for _ in range(600):
            if (folder / "begun0").exists() and (folder / "begun1").exists():
                break
            time.sleep(0.1)
        if i == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)
        (folder / f"ended{i}").touch()

    with pytest.raises(TerminatedWorkerError):
        Parallel(n_jobs=2)(delayed(job)(i, tmp_path) for i in range(2))
    assert not (tmp_path / "ended1").exists()

    executor = submitit.AutoExecutor(cluster="local", folder=str(tmp_path / "jobs"))
    dies = executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(submitit.core.utils.UncompletedJobError):
        dies.results()
