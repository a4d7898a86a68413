"""Jobs that their scheduler stops and starts again go on by themselves: stand-ins for SLURM's programs; submitit; Kubernetes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from diffcli import checkpoint
from diffcli.commands.requeue import comes_back, job

SCRIPTS = Path(__file__).parents[2] / "scripts"
STEPS = 60
TINY = (
    "data=moons", "data.n=200", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=10", "preview.every=0",
    "trainer.val_check_interval=1000", "trainer.log_every_n_steps=1", "device=cpu", f"trainer.max_steps={STEPS}",
)  # fmt: skip
SLOW = """
import time
from diffcli.training.module import Training
real = Training.losses
def losses(self, batch, draw):
    time.sleep(0.1)
    return real(self, batch, draw)
Training.losses = losses
"""

# The stand-ins know of SLURM what the script asks of it: sbatch runs the script and runs it again while `requeued` is there;
# srun starts a task for each of --ntasks-per-node, with the variables that say which it is, and hands SIGTERM on.
SBATCH = """
import os, re, subprocess, sys
script, restarts = sys.argv[1], 0
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\\S*)", open(script).read(), re.M))
assert {"signal", "requeue", "open-mode"} <= options.keys() and options["signal"].startswith("USR1@")
while True:
    env = os.environ | {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": options["job-name"], "SLURM_NNODES": "1",
                        "SLURM_NTASKS_PER_NODE": os.environ.get("TASKS", options["ntasks-per-node"])}
    env |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    code = subprocess.run(["bash", script, *sys.argv[2:]], env=env).returncode
    if not os.path.exists("requeued"):
        sys.exit(code)
    os.remove("requeued")
    restarts += 1
"""
SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
n = os.environ["SLURM_NTASKS_PER_NODE"]
tasks = [subprocess.Popen(words, env=os.environ | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": n, "SLURM_STEP_NUM_NODES": "1",
         "SLURM_NTASKS": n, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NODEID": "0"}) for i in range(int(n))]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
open("tasks", "a").write(" ".join(str(task.pid) for task in tasks) + "\\n")
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = "import sys; assert sys.argv[1] == 'requeue'; open('requeued', 'w').write(sys.argv[2])"


@pytest.fixture
def cluster(tmp_path):
    """The environment in which the stand-ins are found, and `diffcli`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, source in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(f"#!{sys.executable}\n{source}")
        (programs / name).chmod(0o755)
    (programs / "diffcli").write_text(f'#!/bin/sh\nexec {sys.executable} -m diffcli "$@"\n')
    (programs / "diffcli").chmod(0o755)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def wait_for(condition, process=None):
    end = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def rows(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["loss"]]


def same_weights(one, other):
    a, b = (checkpoint.read(folder / "checkpoints/last.ckpt") for folder in (one, other))
    assert a["global_step"] == b["global_step"] == STEPS
    for group in ("state_dict", "ema"):
        assert all(torch.equal(value, b[group][name]) for name, value in a[group].items())


CODES = {"finished": ([0], 0, 1), "failed": ([1], 1, 1), "diverged": ([4], 4, 1), "time is up": ([138, 138, 0], 0, 3)}
CODES |= {"preempted": ([143, 0], 0, 2), "then fails": ([138, 2], 2, 2)}


@pytest.mark.parametrize("name", CODES)
def test_the_script_queues_a_job_again_that_saved_and_no_other(cluster, tmp_path, name, injected):
    codes, end, starts = CODES[name]
    (tmp_path / "codes").write_text("\n".join(map(str, codes)))
    (tmp_path / "bin/diffcli").write_text(
        '#!/bin/sh\necho "$@" >> said\nn=$(wc -l < said)\nexit $(sed -n "${n}p" codes)\n'
    )
    done = subprocess.run(
        ["sbatch", SCRIPTS / "train.sbatch", "sde=vp"], cwd=tmp_path, env=cluster | {"TASKS": "1"}, timeout=60
    )
    said = (tmp_path / "said").read_text().splitlines()
    assert (done.returncode, len(said)) == (end, starts)
    assert set(said) == {"train sde=vp out=outputs/train/slurm-4242 trainer=ddp resume=auto"}
    injected(
        "exit codes of a SLURM job", "138 and 143 are queued again, nothing else is", n=len(codes), survived=len(codes)
    )


def test_a_preempted_script_hands_the_signal_on_and_waits(cluster, tmp_path):
    (tmp_path / "bin/diffcli").write_text(
        "#!/bin/bash\n[ -e again ] && exit 0\ntouch again\ntrap 'sleep 0.5; exit 143' TERM\ntouch ready\n"
        "while :; do sleep 0.05; done\n"
    )
    process = subprocess.Popen(
        ["sbatch", SCRIPTS / "train.sbatch"], cwd=tmp_path, env=cluster | {"TASKS": "1"}, start_new_session=True
    )
    try:
        wait_for((tmp_path / "ready").exists, process)
        (script,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(script), signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    assert len((tmp_path / "tasks").read_text().splitlines()) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_a_requeued_training_ends_with_the_weights_of_an_uninterrupted_one(cluster, tmp_path, start, signum, injected):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    words = [*TINY, "out=run"]
    process = subprocess.Popen(
        ["sbatch", SCRIPTS / "train.sbatch", *words], cwd=tmp_path, env=cluster | {"TASKS": "2"}, text=True,
        start_new_session=True, stdout=(tmp_path / "said").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for(lambda: len(rows(tmp_path / "run/metrics.csv")) >= 3, process)
        for pid in (tmp_path / "tasks").read_text().split():
            os.kill(int(pid), signum)
        assert process.wait(300) == 0, (tmp_path / "said").read_text()
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "said").read_text()
    assert len((tmp_path / "tasks").read_text().splitlines()) == 2 and said.count("resuming from") == 1
    assert said.count("= 20 items a step") == 2  # one rank says it at each start, taking the devices from srun
    assert [int(row["step"]) for row in rows(tmp_path / "run/metrics.csv")] == list(range(STEPS))
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["status"], record["job"]) == ("finished", "slurm 4242")
    (tmp_path / "sitecustomize.py").unlink()
    assert start("train", *TINY, "trainer=ddp", "devices=2", "out=whole").wait() == 0
    same_weights(tmp_path / "run", tmp_path / "whole")
    injected("time-out and preemption of a SLURM job of two ranks", "queued again, the weights of an uninterrupted run")


@pytest.mark.heavy
def test_submitit_queues_a_job_again_that_has_saved_and_it_goes_on_by_itself(cluster, tmp_path, start, injected):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "diffcli", "train", "-m", "hydra/launcher=submitit_local", *TINY, "out=sweep"], text=True,
        cwd=tmp_path, env=cluster, start_new_session=True, stdout=(tmp_path / "said").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip

    def running():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                here = Path(os.readlink(path.parent / "cwd")) == tmp_path
                if here and b"submitit.core._submit" in path.read_bytes():
                    return int(path.parent.name)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return None

    try:
        wait_for(lambda: len(rows(tmp_path / "sweep/0/metrics.csv")) >= 3, process)
        first = running()
        os.kill(first, signal.SIGUSR2)
        wait_for(lambda: running() not in (first, None), process)
        assert process.wait(300) == 0, (tmp_path / "said").read_text()
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    logs = "".join(path.read_text() for path in tmp_path.glob("**/*_log.out"))
    assert logs.count("resuming from") == 1, logs
    assert [int(row["step"]) for row in rows(tmp_path / "sweep/0/metrics.csv")] == list(range(STEPS))
    (tmp_path / "sitecustomize.py").unlink()
    assert start("train", *TINY, "out=whole").wait() == 0
    same_weights(tmp_path / "sweep/0", tmp_path / "whole")
    injected(
        "submitit's signal to a training",
        "saved, queued again, the weights of an uninterrupted run",
        stock="submitit ends the process where it is",
    )


def test_only_the_job_that_made_a_run_comes_back_to_it(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"job": "slurm 7"}))
    slurm = {"SLURM_JOB_ID": "7"}
    assert comes_back(tmp_path, slurm | {"SLURM_RESTART_COUNT": "1"})
    assert comes_back(tmp_path, slurm | {"SUBMITIT_EXECUTOR": "slurm"})
    assert not comes_back(tmp_path, slurm)  # a second command line of the same allocation
    assert not comes_back(tmp_path, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"})
    assert not comes_back(tmp_path / "new", slurm | {"SLURM_RESTART_COUNT": "1"})
    assert not comes_back(None, slurm | {"SLURM_RESTART_COUNT": "1"})
    (tmp_path / "run.json").write_text("{}")
    assert not comes_back(tmp_path, {"SLURM_RESTART_COUNT": "1"})
    assert job({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}) == "slurm 7_3"
    assert job({"SLURM_JOB_ID": "9", "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "5"}) == "submitit 5"


def test_the_kubernetes_job_tries_again_where_that_helps():
    spec = yaml.safe_load((SCRIPTS / "k8s-job.yaml").read_text())["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert container["command"] == ["diffcli", "train"]  # no shell that would keep SIGTERM to itself
    assert "resume=auto" in container["args"]
    out = next(word.removeprefix("out=") for word in container["args"] if word.startswith("out="))
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() >= {"/runs", "/data"} and set(mounts.values()) == volumes.keys()
    assert out.startswith("/runs/") and "persistentVolumeClaim" in volumes[mounts["/runs"]]
    actions = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("FailJob", "Ignore", "Count", "FailIndex")
        on = rule.get("onExitCodes")
        if on is not None:
            assert on["containerName"] == container["name"] and on["operator"] in ("In", "NotIn")
            actions |= dict.fromkeys(on["values"], rule["action"])
    assert actions == {2: "FailJob", 3: "FailJob", 4: "FailJob", 138: "Ignore", 143: "Ignore"}
