"""Logging cannot stop a training, whatever becomes of wandb or TensorBoard; and no secret gets into what a run writes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffcli.training import loggers
from diffcli.training.loggers import wandb_logger

EXPECTED = "one warning, metrics.csv complete, exit 0"
RUN = ("train", "data=moons", "network.width=8", "network.blocks=1", "batch_size=16", "trainer.max_steps=4", "optim.warmup=0",
       "trainer.log_every_n_steps=1", "preview.every=2", "preview.n=4", "preview.steps=2", "checkpoint.every=2")  # fmt: skip
SECRET = "c0ffee5ec4e7" * 3 + "abcd"  # of 40 characters, as wandb's keys have


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts the stand-in in wandb's place; sets its fault, gives what it was told."""
    (tmp_path / "modules").mkdir()
    shutil.copy(Path(__file__).with_name("wandb_stand_in.py"), tmp_path / "modules" / "wandb.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    tale = tmp_path / "tale"

    def use(fault):
        tale.unlink(missing_ok=True)
        monkeypatch.setenv("TALE", str(tale))
        monkeypatch.setenv("FAULT", fault)
        return lambda: [json.loads(line) for line in tale.read_text().splitlines()] if tale.exists() else []

    return use


def warnings(err):
    assert "Traceback" not in err, err
    return [line for line in err.splitlines() if line.startswith("warning: ")]


def log_ten(folder):
    """What a training does with its logger."""
    folder.mkdir()
    logger = wandb_logger(str(folder), mode="offline")
    logger.log_hyperparams({"seed": 0})
    for step in range(10):
        logger.log_metrics({"loss": 1.0}, step)
        if step == 5:
            (folder / "samples").mkdir()
            (folder / "samples/step0000005.png").write_bytes(b"no picture, the stand-in does not mind")
    logger.finalize("success")
    assert logger._process.returncode is not None  # nothing is left behind


CALLS = ("import", "init offline", "config", "log", "image", "finish")


@pytest.mark.parametrize("how", ["", "kill ", "exit "])
def test_a_failure_anywhere_is_one_warning(tmp_path, stand_in, monkeypatch, capfd, injected, how):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    for i, call in enumerate(CALLS):
        told = stand_in(how + call)
        log_ten(tmp_path / f"run{i}")
        out, err = capfd.readouterr()
        assert len(warnings(err)) == len(err.splitlines()) == 1, (call, err)
        assert "metrics.csv goes on" in err
        assert SECRET not in out + err
        assert told()[-1]["what"] == call
    name = {"": "raises", "kill ": "is killed", "exit ": "ends the process"}[how]
    injected(f"wandb {name} at import, init, config, log, image, finish", EXPECTED, n=6, survived=6)


def test_one_that_hangs_is_left(tmp_path, stand_in, monkeypatch, capfd, injected):
    monkeypatch.setattr(loggers, "WAIT", 1)
    for i, call in enumerate(("import", "log", "finish")):
        stand_in(f"hang {call}")
        log_ten(tmp_path / f"run{i}")
        assert len(warnings(capfd.readouterr().err)) == 1, call
    injected("wandb hangs", EXPECTED, n=3, survived=3)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")}
            for row in csv.DictReader(file)
        ]


def test_a_training_whose_logging_fails_is_the_same_training(cli, tmp_path, stand_in, injected):
    assert cli(*RUN, "out=plain").code == 0
    whole = rows(tmp_path / "plain")
    assert len([row for row in whole if row["loss"]]) == 4
    faults = {"kill log": "wandb", "finish": "wandb", "": "tensorboard"}
    for i, (fault, kind) in enumerate(faults.items()):
        stand_in(fault)
        folder = tmp_path / f"run{i}"
        if not fault:
            folder.mkdir()
            (folder / kind).write_text("in the place of the folder that it wants")
        done = cli(*RUN, f"logger={kind}", f"out={folder}")
        assert done.code == 0, done.err
        assert len(warnings(done.err)) == 1, done.err
        assert rows(folder) == whole
    injected("a training whose logging fails", EXPECTED, n=3, survived=3)


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_run_and_jobs_of_a_sweep_are_runs_of_one_group(cli, tmp_path, stand_in):
    told = stand_in("")
    allowed = ("resume=auto", "resume_allow=[trainer]")
    for more in ((), ("trainer.max_steps=6", *allowed)):
        done = cli(*RUN, "logger=wandb", "out=run", *more)
        assert done.code == 0, done.err
    assert cli(*RUN, "-m", "logger=wandb", "seed=0,1", "preview.every=0", "out=many").code == 0
    begun = [entry for entry in told() if entry["what"].startswith("init")]
    assert len(begun) == 4
    assert len({entry["id"] for entry in begun}) == 3
    assert begun[0]["id"] == begun[1]["id"]
    assert [entry["group"] for entry in begun] == [None, None, "many", "many"]
    assert [entry["name"] for entry in begun] == [None, None, "many-0", "many-1"]
    assert len({entry["pid"] for entry in told()}) == 4
    assert [entry["code"] for entry in told() if entry["what"] == "finish"] == [0] * 4


@pytest.mark.heavy
def test_only_rank_0_logs(cli, tmp_path, stand_in):
    told = stand_in("")
    done = cli(*RUN, "logger=wandb", "out=run", "trainer=ddp", "device=cpu", "devices=2", "preview.every=0")
    assert done.code == 0, done.err
    assert len([entry for entry in told() if entry["what"].startswith("init")]) == 1
    assert [e["values"]["trainer/global_step"] for e in told() if "loss" in e.get("values", ())] == [0, 1, 2, 3]


# --- the real wandb


def services(parent):
    """Processes of wandb's service that serve one process, by what they were started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"wandb-core" in words[0] and b"--pid" in words and words[words.index(b"--pid") + 1] == str(parent).encode():
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_the_service_of_wandb_is_killed(tmp_path, capfd, injected):
    (tmp_path / "run").mkdir()
    logger = wandb_logger(str(tmp_path / "run"), mode="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    end = time.monotonic() + 120
    while not list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")):  # it is up and writes
        assert time.monotonic() < end
        time.sleep(0.05)
    for pid in services(logger._process.pid):
        os.kill(pid, signal.SIGKILL)
    step = 0
    while logger._process.poll() is None:  # until it has noticed
        assert time.monotonic() < end
        logger.log_metrics({"loss": 1.0}, step := step + 1)
        time.sleep(0.05)
    for _ in range(10):
        logger.log_metrics({"loss": 1.0}, step := step + 1)
    logger.finalize("success")
    err = capfd.readouterr().err
    assert len(warnings(err)) == len(err.splitlines()) == 1, err
    injected("wandb's service is killed", EXPECTED, stock="WandbLogger raises in the training, and a trace at exit")


STOCK = """
import os, signal, sys
from lightning.pytorch.loggers import WandbLogger
sys.path.insert(0, {tests!r})
from test_logging import services
logger = WandbLogger(save_dir=".", mode="offline")
logger.log_metrics({{"loss": 1.0}}, 0)
for pid in services(os.getpid()):
    os.kill(pid, signal.SIGKILL)
for step in range(1000):
    logger.log_metrics({{"loss": 1.0}}, step)
print("the training goes on")
"""


@pytest.mark.heavy
def test_the_stock_logger_does_not_survive_its_service(tmp_path):
    code = STOCK.format(tests=str(Path(__file__).parent))
    env = os.environ | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "the training goes on" not in done.stdout
    assert "Traceback" in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("case", ["no server", "no key"])
def test_a_server_that_cannot_be_reached_means_offline(cli, tmp_path, monkeypatch, injected, case):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if case == "no server":
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
    done = cli(*RUN, "logger=wandb", "logger.mode=online", "out=run")
    assert done.code == 0, done.err
    assert len(warnings(done.err)) == 1, done.err
    assert "offline" in done.err
    assert SECRET not in done.out + done.err
    assert len(rows(tmp_path / "run")) >= 4
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert holders(tmp_path / "run") == []
    injected(f"wandb online with {case}", "one warning, kept offline, exit 0")


def holders(folder):
    """Files of a run that hold the secret."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_secret_is_written(cli, tmp_path, monkeypatch, injected):
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    done = cli(*RUN, "logger=wandb", "logger.mode=offline", "out=run")
    assert done.code == 0, done.err
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    failed = cli(*RUN, "out=failed", "optim.lr=1e30")
    assert failed.code == 4
    assert (tmp_path / "failed/error.log").exists()
    for key in ("logger.api_key", "+logger.api_key", "+logger.key"):
        refused = cli(*RUN, "logger=wandb", f"{key}={SECRET}", "out=refused")
        assert refused.code == 2
        assert SECRET not in refused.out + refused.err
        assert not (tmp_path / "refused").exists()
    assert holders(tmp_path) == []
    (tmp_path / "run" / "planted").write_text(f"key: {SECRET}")
    assert holders(tmp_path) == [tmp_path / "run" / "planted"]
    injected("secrets in the environment, or as a logger's key", "in no file, nor on screen", n=6, survived=6)
