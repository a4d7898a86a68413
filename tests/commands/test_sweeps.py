"""Sweeps: here, in processes side by side, as a search; ready-made ones, and those of wandb."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffcli.cli import _job
from diffcli.commands.job import Job, Outcome
from diffcli.help import groups

ROOT = Path(__file__).resolve().parents[2]
TINY = ["data=moons", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=8", "preview.every=0"]
TINY += ["trainer.max_steps=4", "trainer.val_check_interval=2", "data.n=100"]
SAMPLE = ["sample", "-m", "network=exact", "data=mixture", "n=4", "png=false"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def records(folder):
    paths = sorted(folder.glob("*/run.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


def diffcli(folder, *words, **more):
    command = [sys.executable, "-m", "diffcli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=ENVIRONMENT | more)


def test_out_is_the_folder_of_the_sweep(cli, tmp_path):
    assert cli(*SAMPLE, "steps=1,2", "out=a b/s").code == 0
    assert sorted(p.name for p in (tmp_path / "a b/s").iterdir()) == ["0", "1", "multirun.yaml"]
    assert [p.name for p in tmp_path.iterdir()] == ["a b"]
    again = cli(*SAMPLE, "steps=1,2", "out=a b/s")
    assert again.code == 2 and "already holds a run" in again.err
    assert sorted(p.name for p in (tmp_path / "a b/s").iterdir()) == ["0", "1", "multirun.yaml"]
    assert not list(tmp_path.rglob("refused.json")), "what the finished runs hold is not said to be refused"


def test_the_exit_code_is_the_worst_of_all(cli):
    done = cli(*SAMPLE, "steps=1", "ckpt=null,gone.ckpt", "network=exact,")
    assert done.code == 2
    assert Job("train", _job).code() == 0
    task = Job("train", _job)
    task.ended = {0: Outcome(0), 1: Outcome(4), 2: Outcome(2)}
    assert task.code() == 4


def test_a_job_can_be_sent_to_another_process():
    task = Job("train", _job)
    task.ended[0] = Outcome(3)
    sent = pickle.loads(pickle.dumps(task))
    assert (sent.command, sent.boundary, sent.elsewhere, sent.ended) == ("train", _job, True, {})
    assert (sent.__module__, sent.__name__) == ("diffcli.commands.train", "train"), "they name Hydra's job"


@pytest.mark.parametrize("outcome", [Outcome(2, "bad"), Outcome(0), Outcome(0, figure=float("nan"))])
def test_what_has_no_figure_is_no_number_for_a_search(outcome):
    with pytest.raises(ValueError):
        float(outcome)
    assert float(Outcome(0, figure=1.5)) == 1.5


@pytest.mark.heavy
def test_jobs_side_by_side_are_the_jobs_one_after_the_other(cli, tmp_path):
    """The same folders, numbers, seeds and samples, and what went wrong is said by the same words."""
    words = [*SAMPLE, "steps=1,2,0", "seed=3"]
    assert cli(*words, "out=one").code == 2
    done = cli(*words, "out=two", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.code == 2
    for i in range(2):
        a, b = ((tmp_path / name / str(i)) for name in ("one", "two"))
        assert (a / "samples.npy").read_bytes() == (b / "samples.npy").read_bytes()
        assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    told = [json.loads((tmp_path / name / "2/refused.json").read_text()) for name in ("one", "two")]
    assert told[0]["error"] == told[1]["error"] == "steps must be at least 1, got 0"
    assert "[2] error: steps must be at least 1, got 0" in done.out


@pytest.mark.heavy
def test_a_sweep_goes_on_with_what_is_not_finished(cli, tmp_path):
    words = ["train", "-m", *TINY, "seed=0,1,2", "out=s"]
    assert cli(*words).code == 0
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("s/*/run.json"))]
    (tmp_path / "s/1/run.json").unlink()
    for path in (tmp_path / "s/1/checkpoints").iterdir():
        path.unlink()
    done = cli(*words, "resume=auto")
    assert done.code == 0 and done.out.count("has finished its 4 steps already") == 2
    after = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("s/*/run.json"))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.heavy
def test_a_search_minimises_the_validation_loss(cli, tmp_path):
    """The best trial is the run of the lowest val_loss; one that fails does not end the search; with resume=auto it is the same."""
    words = ["train", "-m", *(word for word in TINY if "batch_size" not in word)]
    words += ["sweep=learning_rate_search", "hydra.sweeper.n_trials=4", "out=s"]
    words += ["hydra.sweeper.sampler.n_startup_trials=4", "hydra.sweeper.sampler.seed=3", "batch_size=8,0"]
    done = cli(*words)
    found = records(tmp_path / "s")
    refused = list((tmp_path / "s").glob("*/refused.json"))
    assert len(found) + len(refused) == 4 and found and refused
    assert done.code == (2 if refused else 0), done.err
    best = yaml.safe_load((tmp_path / "s/optimization_results.yaml").read_text())
    lowest = min(found, key=lambda record: record["results"]["val_loss"])
    assert best["best_value"] == lowest["results"]["val_loss"]
    assert best["best_params"]["optim.lr"] == lowest["config"]["optim"]["lr"]
    again = cli(*words, "resume=auto")
    assert again.out.count("has finished its 4 steps already") == len(found), "the same trials in the same order"
    assert yaml.safe_load((tmp_path / "s/optimization_results.yaml").read_text()) == best


def test_a_search_of_which_every_trial_fails_is_a_sentence(cli, tmp_path):
    done = cli("train", "-m", *TINY, "sweep=learning_rate_search", "hydra.sweeper.n_trials=2", "batch_size=0", "out=s")
    assert done.code == 2
    assert "no job of the search came to a figure" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "s").exists()


def test_a_search_without_a_validation_is_refused_before_any_training(cli, tmp_path):
    words = [word for word in TINY if "val_check" not in word]
    done = cli("train", "-m", *words, "sweep=learning_rate_search", "hydra.sweeper.n_trials=1", "out=s")
    assert done.code == 2
    assert "no validation falls within trainer.max_steps=4 (trainer.val_check_interval=250)" in done.err
    assert not (tmp_path / "s").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_every_ready_sweep_runs(command, cli, tmp_path):
    """Each makes as many jobs as its line says, which a dry run finds sound."""
    said = {"sde_x_loss": 6, "sampler_x_steps": 24, "learning_rate": 5}
    base = TINY if command == "train" else ["network=exact", "data=mixture"]
    tried = 0
    for name in groups(command)["sweep"]:
        if name in ("none", "learning_rate_search"):
            continue
        done = cli(command, "-m", *base, f"sweep={name}", "dry_run=true")
        assert done.code == 0, done.err
        assert f"{said[name]} of {said[name]} jobs ended well" in done.out
        tried += 1
    assert tried


def test_a_ready_sweep_is_of_its_commands(cli):
    done = cli("train", "-m", "sweep=sampler_x_steps")
    assert done.code == 2 and "is of sample and evaluate, not of train" in done.err


@pytest.mark.parametrize(
    ("word", "extra"),
    [
        ("hydra/launcher=joblib", "sweep"),
        ("hydra/launcher=submitit_local", "slurm"),
        ("hydra/launcher=submitit_slurm", "slurm"),
        ("hydra/sweeper=optuna", "optuna"),
        ("sweep=learning_rate_search", "optuna"),
    ],
)
def test_what_is_not_installed_is_a_sentence(word, extra, tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/__init__.py").touch()  # in the place of all that are installed
    done = diffcli(tmp_path, "train", "-m", word, "seed=0,1", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert f'try: pip install "diffcli[{extra}]"' in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_launcher_that_there_is_not_is_a_sentence(cli):
    done = cli("train", "-m", "hydra/launcher=joblb", "seed=0,1")
    assert done.code == 2 and "did you mean 'joblib'?" in done.err


def test_starting_loads_no_plugin_of_weight(tmp_path):
    """Plugins are looked for at each start; what they stand for is imported where it is used."""
    code = "from diffcli.cli import main; import sys; main(['train', '--cfg', 'job']); print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    loaded = {name.partition(".")[0] for name in done.stdout.partition("LOADED")[2].split()}
    assert "hydra_plugins" in loaded
    assert not loaded & {"torch", "optuna", "submitit", "joblib", "sqlalchemy"}


@pytest.mark.heavy
def test_a_trial_of_wandb_is_a_command_line(tmp_path, cli):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "scripts/wandb_sweep.yaml").read_text())
    chosen = {"optim.lr": 0.00234, "batch_size": 32, "seed": 1}
    assert set(chosen) == set(sweep["parameters"])
    parts = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    words = []  # as wandb's agent fills its macros in
    for word in sweep["command"]:
        words += parts.get(word[2:-1], []) if word.startswith("${") else [word]
    assert words[:3] == ["diffcli", "train", "logger=wandb"]
    done = cli(*words[1:], *TINY[:-4], "trainer.max_steps=3", "dry_run=true")
    assert done.code == 0, done.err
    shown = cli(*words[1:], "--cfg", "job")
    config = yaml.safe_load(shown.out)
    assert (config["optim"]["lr"], config["batch_size"], config["seed"]) == (0.00234, 32, 1)
    assert sweep["metric"] == {"name": "val_loss", "goal": "minimize"}
