"""`diffcli report`: what differs, what is best, what failed and why, of any tree of runs."""

import csv
import fcntl
import json
import math
import shutil
import statistics
import subprocess
import sys

import pytest
from PIL import Image

TARGET = "diffcli.diffusion."


def write(folder, command="train", status="finished", results=None, config=None, **more):
    """A run's record, as commands write it."""
    sde = {"_target_": TARGET + "sde.VP", "schedule": {"_target_": TARGET + "schedule.Linear", "beta_max": 20.0}}
    network = {"_target_": "diffcli.networks.mlp.MLP", "width": 8}
    model = {"_target_": TARGET + "prediction.Eps", "sde": sde, "network": network}
    whole = {"out": str(folder), "seed": 0, "batch_size": 64, "logger": {}, "denoiser": model}
    whole |= {"schedule": sde["schedule"], "sde": sde} | (config or {})
    record = {"command": command, "status": status, "config": whole, "seed": 0, "started": "2026-01-01T00:00:00+00:00"}
    record |= {"steps": 10, "nfe": None, "seconds": 1.5, "results": results or {}} | more
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))


def sheet(folder):
    with (folder / "report.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def trained(folder, lr, val_loss, **more):
    write(folder, results={"val_loss": val_loss, "loss": 1.0}, config={"optim": {"lr": lr}, **more})


def test_runs_are_ordered_by_their_figure_and_told_apart_by_what_differs(cli, tmp_path):
    for i, (lr, loss) in enumerate(((0.1, 0.9), (0.01, 0.2), (0.001, 0.5))):
        trained(tmp_path / f"s/{i}", lr, loss)
    done = cli("report", "dir=s")
    assert done.code == 0, done.err
    head, *rows = [line.split() for line in done.out.splitlines()[1:5]]
    assert head[:2] == ["run", "optim.lr"] and "sde" not in head and "seed" not in head
    assert [row[0] for row in rows] == ["1", "2", "0"]
    assert [row[1] for row in rows] == ["0.01", "0.001", "0.1"]
    found = sheet(tmp_path / "s")
    assert {name: float(row["val_loss"]) for name, row in found.items()} == {"0": 0.9, "1": 0.2, "2": 0.5}
    text = (tmp_path / "s/report.md").read_text()
    assert "sde=VP" in text and "schedule.beta_max=20" in text and "![the figures](report.png)" in text
    assert text.count("schedule.beta_max") == 1, "what is held by several parts is said once"
    with Image.open(tmp_path / "s/report.png") as picture:
        picture.load()
    again = cli("report", "dir=s", "by=loss")
    assert again.code == 0 and "best first by loss" in again.out


def test_what_follows_from_a_part_is_no_column(cli, tmp_path):
    """A schedule's own settings come with it, unless they were changed; seeds are a column where they differ."""

    def config(name, sigma, seed):
        schedule = {"_target_": TARGET + "schedule." + name, "sigma_max": sigma}
        sde = {"_target_": TARGET + "sde.VP", "schedule": schedule}
        model = {"_target_": TARGET + "prediction.Eps", "sde": sde, "network": {}}
        return {"sde": sde, "schedule": schedule, "denoiser": model, "seed": seed}

    for i, of in enumerate((("A", 1.0, 0), ("B", 2.0, 1))):
        write(tmp_path / f"s/{i}", results={"val_loss": 1.0}, config=config(*of))
    assert cli("report", "dir=s").out.splitlines()[1].split()[:4] == ["run", "seed", "schedule", "val_loss"]
    write(tmp_path / "s/own", results={"val_loss": 1.0}, config={"batch_size": 64, "schedule_only": 7})
    assert cli("report", "dir=s").code == 0
    assert "schedule_only=7" not in (tmp_path / "s/report.md").read_text(), "the others do not have it"
    shutil.rmtree(tmp_path / "s/own")
    write(tmp_path / "s/2", results={"val_loss": 1.0}, config=config("B", 3.0, 1))
    assert cli("report", "dir=s").out.splitlines()[1].split()[:4] == ["run", "seed", "schedule", "schedule.sigma_max"]


def test_what_did_not_finish_is_named_with_its_reason(cli, tmp_path):
    trained(tmp_path / "s/0", 0.1, 0.9)
    write(
        tmp_path / "s/1",
        status="failed",
        results={"error": "the loss is not finite\nat step 3"},
        config={"optim": {"lr": 9.0}},
    )
    write(tmp_path / "s/2", status="interrupted", config={"optim": {"lr": 0.2}})
    write(tmp_path / "s/3", status="stopped", config={"optim": {"lr": 0.3}}, results={"val_loss": 0.1})
    write(tmp_path / "s/4", status="running", config={"optim": {"lr": 0.4}})
    write(tmp_path / "s/5", status="running", config={"optim": {"lr": 0.5}})
    (tmp_path / "s/6").mkdir()
    (tmp_path / "s/6/run.json").write_text('{"command": "tr')
    (tmp_path / "s/4/.lock").touch()
    with (tmp_path / "s/4/.lock").open("r+") as lock:
        code = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX)"
        code += "; print(1, flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s/4/.lock")], stdin=-1, stdout=-1) as writer:
            writer.stdout.readline()
            done = cli("report", "dir=s")
            writer.stdin.close()
        assert fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None, "the report has not taken the lock"
    assert done.code == 0
    lines = [line.removeprefix("  not finished: ") for line in done.out.splitlines() if "not finished: " in line]
    assert lines[0] == "1 failed (optim.lr=9): the loss is not finite at step 3"
    assert lines[1].startswith("2 interrupted (optim.lr=0.2)") and "resume=auto goes on" in lines[2]
    assert "still being written" in lines[3] and "5 gone (optim.lr=0.5): it ended without a word" in lines[4]
    assert "warning: " in done.out and "s/6/run.json cannot be read" in done.out
    assert done.out.splitlines()[0] == "train: 6 runs; 5 not finished"
    assert {row["status"] for row in sheet(tmp_path / "s").values()} >= {"failed", "gone", "stopped", "running"}


def test_a_training_stands_in_one_row_with_what_was_measured_of_it(cli, tmp_path):
    """By the newest nll and evaluate of a checkpoint of it, whether their paths are absolute or as they were typed."""
    for i, loss in enumerate((0.2, 0.3)):
        trained(tmp_path / f"s/{i}", 0.1 * (i + 1), loss)

    def measured(name, i, bits, started, path):
        results = {"bits_per_dim": bits, "bits_per_dim_standard_error": 0.01, "n": 5, "dimensions": 2}
        write(tmp_path / name, "nll", results=results, config={"ckpt": str(path)}, started=started)

    measured("s/n0", 0, 9.0, "2026-01-01T00:00:00+00:00", tmp_path / "s/0/checkpoints/last.ckpt")
    measured("s/n0b", 0, 3.0, "2026-01-02T00:00:00+00:00", "s/0/checkpoints/best.ckpt")
    measured("s/n1", 1, 2.0, "2026-01-02T00:00:00+00:00", "s/1/checkpoints/last.ckpt")
    figures = {"frechet": {"mean": 7.0, "sd": 0.5}, "precision": {"mean": 0.5, "sd": None}}
    write(tmp_path / "s/e1", "evaluate", results={"figures": figures}, config={"ckpt": "s/1/checkpoints/last.ckpt"})
    done = cli("report", "dir=s", "by=bits_per_dim")
    assert done.code == 0, done.err
    found = sheet(tmp_path / "s")
    assert (found["0"]["bits_per_dim"], found["1"]["bits_per_dim"], found["1"]["frechet"]) == ("3.0", "2.0", "7.0")
    assert (found["1"]["frechet_error"], found["0"]["frechet"], found["1"]["precision"]) == ("0.5", "", "0.5")
    train, nll = done.out.index("train: 2 runs"), done.out.index("nll: 3 runs")
    assert train < nll < done.out.index("evaluate: 1 run")
    rows = done.out[train:nll].splitlines()[2:4]
    assert [row.split()[0] for row in rows] == ["1", "0"], "fewer bits first, though its val_loss is the larger one"
    assert "of several runs of nll on one model the newest is shown" in done.out
    assert "s/checkpoints" not in done.out and "checkpoints/last.ckpt" not in done.out, "a model goes by its training"


def test_a_loss_of_other_things_is_not_taken_for_a_comparison(cli, tmp_path):
    trained(tmp_path / "s/0", 0.1, 0.9, loss={"weight": "simple"})
    trained(tmp_path / "s/1", 0.1, 0.2, loss={"weight": "likelihood"})
    told = cli("report", "dir=s").out
    assert "val_loss is of each run's own loss, and loss.weight differ" in told
    assert "in order of val_loss" in told and "best" not in told.splitlines()[0]
    trained(tmp_path / "t/0", 0.1, 0.9)
    trained(tmp_path / "t/1", 0.2, 0.2)
    assert "own loss" not in cli("report", "dir=t").out


def test_more_is_better_where_it_is(cli, tmp_path):
    for i, precision in enumerate((0.1, 0.9, 0.5)):
        figures = {"frechet": {"mean": 1.0 + i, "sd": 0.1}, "precision": {"mean": precision, "sd": 0.1}}
        write(tmp_path / f"s/{i}", "evaluate", results={"figures": figures}, config={"n": i})

    def order(*words):
        return [line.split()[0] for line in cli("report", "dir=s", *words).out.splitlines()[2:5]]

    assert order() == ["0", "1", "2"]
    assert order("by=precision") == ["1", "2", "0"]


def test_seeds_are_dots_around_their_mean():
    from matplotlib.figure import Figure

    from diffcli.explain.report_plot import Panel, Point, _dots

    ran = [("VP", 0, 1.0), ("VE", 0, 2.0), ("VE", 1, 3.0), ("VP", 1, 5.0)]
    points = [Point(str(i), {"sde": sde, "seed": seed}, value, None) for i, (sde, seed, value) in enumerate(ran)]
    ax = Figure().subplots()
    _dots(ax, Panel("train", "loss", "lower", ["sde", "seed"], points, {"sde": str, "seed": str}))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sde=VE", "sde=VP"], "by their means"
    means, dots = [[*line.get_xdata()] for line in ax.lines if len(line.get_xdata()) > 1], ax.lines[0].get_xdata()
    assert means == [[2.0, 3.0], [1.0, 5.0]] and [*dots] == [2.5]


SEEDS = {0.1: (0.9, 0.1, 0.8), 0.01: (0.5, 0.52, 0.51), 0.001: (0.7,)}


def test_runs_that_differ_in_their_seed_are_one_row_of_means(cli, tmp_path):
    """By the mean, not by the luckiest seed; what did not finish is not of it, and the files tell of each run too."""
    for lr, losses in SEEDS.items():
        for seed, loss in enumerate(losses):
            coupling = {"_target_": "diffcli.training.coupling.Reflow", "seed": seed}
            trained(tmp_path / f"s/{lr}_{seed}", lr, loss, seed=seed, coupling=coupling)
    again = {"_target_": "diffcli.training.coupling.Reflow", "seed": 0}
    trained(tmp_path / "s/again", 0.1, 0.9, seed=0, coupling=again)  # the same seed says nothing new
    write(tmp_path / "s/lost", status="failed", config={"optim": {"lr": 0.01}, "seed": 3})
    done = cli("report", "dir=s")
    assert done.code == 0, done.err
    head, *rows = [line.split() for line in done.out.splitlines()[1:5]]
    assert head[:3] == ["seeds", "optim.lr", "val_loss"]
    assert [row[:5] for row in rows[:1]] == [["3", "0.01", "0.510", "±", "0.010"]]
    assert [row[:2] for row in rows] == [["3", "0.01"], ["3", "0.1"], ["1", "0.001"]]
    assert "not finished: lost failed" in done.out and "best first by val_loss" in done.out
    with (tmp_path / "s/report_seeds.csv").open(newline="") as file:
        found = {float(row["optim.lr"]): row for row in csv.DictReader(file)}
    for lr, losses in SEEDS.items():
        row = found[lr]
        assert (row["command"], row["seeds"], row["val_loss_n"]) == ("train", str(len(losses)), str(len(losses)))
        assert float(row["val_loss_mean"]) == pytest.approx(statistics.mean(losses), rel=1e-12)
        if len(losses) > 1:
            assert float(row["val_loss_sd"]) == pytest.approx(statistics.stdev(losses), rel=1e-12)
        else:
            assert row["val_loss_sd"] == ""
    assert len(sheet(tmp_path / "s")) == 9
    text = (tmp_path / "s/report.md").read_text()
    assert text.index("| 3 | 0.01 | 0.510 ± 0.010 |") < text.index("Each run:") < text.index("| 0.1_1 | ")
    for folder in (tmp_path / "s").glob("*_[12]"):
        shutil.rmtree(folder)
    assert cli("report", "dir=s").code == 0
    assert not (tmp_path / "s/report_seeds.csv").exists(), "one seed each has no means"
    assert "Each run:" not in (tmp_path / "s/report.md").read_text()


def test_a_seed_that_diverged_is_not_left_out_of_the_mean(cli, tmp_path):
    for seed, loss in enumerate((0.1, math.nan, 0.2)):
        trained(tmp_path / f"s/a{seed}", 0.1, loss, seed=seed)
        trained(tmp_path / f"s/b{seed}", 0.2, 0.5 + seed / 10, seed=seed)
    rows = [line.split() for line in cli("report", "dir=s").out.splitlines()[2:4]]
    assert rows[0][:3] == ["3", "0.2", "0.60"] and rows[1][:3] == ["3", "0.1", "nan"]


def test_the_picture_is_as_high_as_it_has_rows(cli, tmp_path):
    def height(seeds, rates):
        for seed in range(seeds):
            for lr in rates:
                trained(tmp_path / f"{seeds}/{len(rates)}/{lr}_{seed}", lr, lr + seed, seed=seed)
        assert cli("report", f"dir={seeds}/{len(rates)}").code == 0
        with Image.open(tmp_path / f"{seeds}/{len(rates)}/report.png") as picture:
            return picture.height

    assert height(2, (0.1, 0.2)) == height(9, (0.1, 0.2))


def test_a_figure_that_is_not_finite_is_last(cli, tmp_path):
    trained(tmp_path / "s/0", 0.1, math.nan)
    trained(tmp_path / "s/1", 0.2, math.inf)
    trained(tmp_path / "s/2", 0.3, 5.0)
    done = cli("report", "dir=s")
    assert done.code == 0 and done.out.splitlines()[2].split()[0] == "2"
    assert "not finite: figures of 0, 1" in done.out


def test_one_run_is_a_report_too(cli, tmp_path):
    assert cli("sample", "network=exact", "n=4", "steps=2", "png=false", "out=one").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert cli("report", "dir=one").code == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert set(after) - set(before) == {"report.csv", "report.md", "report.png"}
    assert all(after[name] == content for name, content in before.items())
    assert cli("report", "dir=one").code == 0, "a report of before is replaced"
    assert cli("report", "dir=one", "out=two").code == 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["report.csv", "report.md", "report.png"]


@pytest.mark.heavy
def test_a_sweep_over_samplers_and_steps_is_drawn_as_lines(cli, tmp_path):
    words = ["network=exact", "data=mixture", "n=32", "repeats=2", "compared=32", "sampler=ddim,heun", "steps=2,4,8"]
    done = cli("evaluate", "-m", *words, "out=s")
    assert done.code == 0, done.err
    told = cli("report", "dir=s")
    assert told.code == 0 and "evaluate: 6 runs, best first by sliced_wasserstein" in told.out
    found = sheet(tmp_path / "s")
    assert {(row["sampler"], row["setting_steps"]) for row in found.values()} == {
        (s, n) for s in ("DDIM", "Heun") for n in ("2", "4", "8")
    }
    assert all(float(row["sliced_wasserstein_error"]) > 0 for row in found.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dir=gone"], "dir=gone is not a folder"),
        (["dir=empty"], "dir=empty holds no run"),
        (["dir=s", "by=nonsense"], "no run has a figure 'nonsense'"),
        (["dir="], "dir= is empty"),
        (["dir=s", "by=3"], "by must be"),
    ],
)
def test_what_cannot_be_reported_is_a_sentence(words, said, cli, tmp_path):
    (tmp_path / "empty").mkdir()
    trained(tmp_path / "s/0", 0.1, 0.9)
    done = cli("report", *words)
    assert done.code == 2 and said in done.err, done.err
    assert not list(tmp_path.rglob("report.*"))


def test_a_dry_run_writes_nothing(cli, tmp_path):
    trained(tmp_path / "s/0", 0.1, 0.9)
    done = cli("report", "dir=s", "dry_run=true")
    assert done.code == 0 and "would write" in done.out
    assert not list(tmp_path.rglob("report.*"))
