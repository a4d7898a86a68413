"""diffcli train: what a run leaves behind, how it goes on, and how it shares the work."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

TINY = (
    "data=moons",
    "network.width=16",
    "network.blocks=1",
    "batch_size=64",
    "data.n=500",
    "trainer.log_every_n_steps=5",
)
RUN = (
    "train",
    *TINY,
    "trainer.max_steps=20",
    "trainer.val_check_interval=10",
    "checkpoint.every=10",
    "preview.every=10",
)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_files_of_a_run(cli, tmp_path):
    done = cli(*RUN, "out=t", "preview.n=16")
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "t").iterdir()} == {
        "run.json",
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "samples",
    }
    assert {p.name for p in (tmp_path / "t/checkpoints").iterdir()} == {"last.ckpt", "best.ckpt", "step0000020.ckpt"}
    assert {p.name for p in (tmp_path / "t/samples").iterdir()} == {"step0000010.png", "step0000020.png"}
    record = json.loads((tmp_path / "t/run.json").read_text())
    assert {
        "command",
        "config",
        "seed",
        "git",
        "versions",
        "hardware",
        "steps",
        "nfe",
        "seconds",
        "results",
    } <= record.keys()
    assert (record["status"], record["steps"], record["results"]["images_seen"]) == ("finished", 20, 1280)
    metrics = rows(tmp_path / "t/metrics.csv")
    assert [int(r["step"]) for r in metrics if r["loss"]] == [4, 9, 14, 19]
    assert [int(r["step"]) for r in metrics if r["val_loss"]] == [9, 19]
    # the rate rises over 100 steps of warm-up under a cosine of 20
    assert float(metrics[0]["lr"]) == pytest.approx(
        2e-3 * 5 / 100 * 0.5 * (1 + torch.cos(torch.tensor(4 / 20 * torch.pi))).item()
    )


def test_runs_are_functions_of_the_seed(cli, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli(*RUN, f"out={name}", f"seed={seed}", "preview.every=0").code == 0
    a, b, c = (torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_out_is_not_overwritten_unasked(cli, tmp_path):
    assert cli(*RUN, "out=t").code == 0
    (tmp_path / "t/notes.txt").write_text("mine")
    refused = cli(*RUN, "out=t")
    assert refused.code == 2
    assert "overwrite=true" in refused.err
    assert cli(*RUN, "out=t", "overwrite=true", "trainer.max_steps=10").code == 0
    assert json.loads((tmp_path / "t/run.json").read_text())["steps"] == 10
    assert (tmp_path / "t/notes.txt").read_text() == "mine"


def test_resume_auto(cli, tmp_path):
    """Afresh, on, finished; a damaged newest checkpoint is skipped; a changed model refuses; metrics.csv has each step once."""
    assert cli(*RUN, "out=t", "resume=auto").code == 0
    again = cli(*RUN, "out=t", "resume=auto")
    assert again.code == 0
    assert "finished" in again.out
    longer = cli(*RUN, "out=t", "resume=auto", "trainer.max_steps=30", "resume_allow=[trainer]", "checkpoint.keep=3")
    assert longer.code == 0, longer.err
    steps = [int(r["step"]) for r in rows(tmp_path / "t/metrics.csv") if r["loss"]]
    assert steps == [4, 9, 14, 19, 24, 29]
    (tmp_path / "t/checkpoints/last.ckpt").write_bytes(b"torn")
    (tmp_path / "t/checkpoints/step0000030.ckpt").write_bytes(b"torn")
    skipped = cli(*RUN, "out=t", "resume=auto", "trainer.max_steps=30", "resume_allow=[trainer]")
    assert skipped.code == 0, skipped.err
    assert skipped.out.count("skipped:") == 2
    assert "best.ckpt (step 30)" in skipped.out  # all that is left of that step, and last.ckpt is there again
    assert torch.load(tmp_path / "t/checkpoints/last.ckpt", weights_only=True)["global_step"] == 30
    other = cli(*RUN, "out=t", "resume=auto", "network.width=32")
    assert other.code == 2
    assert "width" in other.err
    rate = cli(*RUN, "out=t", "resume=auto", "trainer.max_steps=30", "optim.lr=0.1", "resume_allow=[trainer]")
    assert rate.code == 2
    assert "optim.lr was 0.002, is now 0.1" in rate.err


def test_a_run_of_another_kind_is_never_lost(cli, tmp_path):
    """Neither the samples in the out= of a training that would start afresh, nor the model in the out= of its samples."""
    assert cli("sample", "network=exact", "n=4", "steps=1", "out=s").code == 0
    assert cli(*RUN, "out=s", "resume=auto").code == 2
    assert (tmp_path / "s/samples.npy").exists()
    assert cli(*RUN, "out=t", "trainer.max_steps=2").code == 0
    refused = cli("sample", "ckpt=t/checkpoints/last.ckpt", "n=2", "steps=1", "out=t", "overwrite=true")
    assert refused.code == 2
    assert "would be lost" in refused.err
    assert (tmp_path / "t/checkpoints/last.ckpt").exists()


def test_resumed_learning_rate_applies(cli, tmp_path):
    assert cli(*RUN, "out=t").code == 0
    done = cli(*RUN, "out=t", "resume=auto", "trainer.max_steps=30", "optim.lr=0.5", "optim.decay=none", "optim.warmup=0",
               "resume_allow=[trainer,optim]")  # fmt: skip
    assert done.code == 0, done.err
    assert float([r for r in rows(tmp_path / "t/metrics.csv") if r["lr"]][-1]["lr"]) == 0.5


def test_dry_run_writes_nothing(cli, tmp_path):
    done = cli(*RUN, "dry_run=true")
    assert done.code == 0
    assert "would train" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_compiled_network_keeps_its_names(cli, tmp_path):
    """compile=true is in place: its checkpoint loads as any other, and trains to nearly the same weights."""
    for name, compiled in (("a", "false"), ("b", "true")):
        done = cli(*RUN, f"out={name}", f"compile={compiled}", "preview.every=0", "trainer.max_steps=3")
        assert done.code == 0, done.err
    a, b = (torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in "ab")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    assert cli("sample", "ckpt=b/checkpoints/last.ckpt", "n=2", "steps=2").code == 0


def test_precision_and_accumulation_are_lightnings(cli, tmp_path):
    done = cli(
        *RUN, "out=t", "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "trainer.max_steps=10"
    )
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "t/run.json").read_text())
    assert (record["steps"], record["results"]["images_seen"]) == (10, 1280)


def test_wandb_works_offline_without_an_account(cli, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    done = cli(*RUN, "out=t", "logger=wandb")
    assert done.code == 0, done.err
    assert list((tmp_path / "t/wandb").glob("offline-run-*/*.wandb"))
    assert len(rows(tmp_path / "t/metrics.csv")) == 6


def test_tensorboard(cli, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    assert cli(*RUN, "out=t", "logger=tensorboard").code == 0
    assert list((tmp_path / "t/tensorboard").glob("events.*"))


@pytest.mark.heavy
def test_two_processes_make_one_run(tmp_path):
    """2 gloo processes: one folder, both ranks' items counted, other weights than one process gives; sweeps of it work."""
    command = [
        sys.executable,
        "-m",
        "diffcli",
        *RUN,
        "trainer=ddp",
        "device=cpu",
        "preview.every=0",
        "trainer.max_steps=6",
        "checkpoint.every=3",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "seed=0,1", "out=t"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for job in ("0", "1"):
        record = json.loads((tmp_path / "t" / job / "run.json").read_text())
        assert (record["steps"], record["seed"], record["results"]["images_seen"]) == (6, int(job), 6 * 64 * 2)
        assert (
            len(list((tmp_path / "t" / job / "checkpoints").glob("*.ckpt"))) == 2
        )  # last and step6; no validation yet
    assert not (tmp_path / "t/2").exists()
