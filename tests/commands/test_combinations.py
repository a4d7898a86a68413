"""Every pair of options trains five steps to a finite loss, or is refused before any work: the tables of the README.

python tests/commands/test_combinations.py      prints them anew
"""

import csv
import math
import shutil
from pathlib import Path

import pytest

from diffcli.paths import conf_dir

README = Path(__file__).resolve().parents[2] / "README.md"
SMALL = {  # settings that keep a network small
    "mlp": ["network.width=8", "network.blocks=1"],
    "unet": ["network.channels=4", "network.multipliers=[1,2]"],
    "dit": ["network.width=16", "network.depth=1", "network.heads=2"],
    "kde": [],
    "kernel": ["network.levels=3", "network.centres=20"],
}
MORE = {  # what an option cannot do without
    "sde=one": ["levels=one", "level.sigma=0.5"],
}
RUN = ["trainer.max_steps=5", "batch_size=16", "preview.every=0", "trainer.limit_val_batches=0", "out=run"]


def options(group: str, *but: str) -> list[str]:
    return [f"{group}={p.stem}" for p in sorted((conf_dir() / group).glob("*.yaml")) if p.stem not in but]


def table(name: str) -> tuple[list[str], list[str]]:
    """The rows and columns of a table, as words of the command line."""
    losses = [*options("loss"), "loss=vlb loss.variance=learned prediction.outputs=2"]
    weights = [f"loss.weight={w}" for w in ("simple", "likelihood", "uniform", "min_snr", "edm", "v", "snr", "learned")]
    times = [f"loss.time={t}" for t in ("uniform", "levels", "lognormal", "importance")]
    if name == "process":
        rows = [*options("schedule", "none"), *options("prediction"), *losses, *weights, *times]
        return rows, options("sde")
    if name == "loss":
        return losses, [*options("prediction"), *options("network", "exact", "diffusers_unet"), *options("coupling")]
    return options("network", "exact", "diffusers_unet"), [*options("prediction"), *options("levels")]


def words(*cell: str) -> list[str]:
    """The command line of a cell."""
    found = [w for option in cell for w in option.split()]
    network = next((w.removeprefix("network=") for w in found if w.startswith("network=")), None)
    found = [*(w for w in found if w != "sde=one"), *(m for w in found for m in MORE.get(w, ()))]
    data = "data=moons" if network is None else "data=digits"
    return [data, *found, *SMALL[network or "mlp"], *RUN]


def outcome(cli, folder: Path, *cell: str) -> str:
    """Empty where the pair trains, else the sentence with which it is refused; anything else fails."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    done = cli("train", *words(*cell))
    if done.code == 0:
        with (folder / "run/metrics.csv").open() as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
        assert all(map(math.isfinite, losses)), (cell, losses)
        assert (folder / "run/checkpoints/last.ckpt").is_file(), cell
        return ""
    assert done.code == 2, (cell, done.err)
    assert "Traceback" not in done.err, cell
    (sentence,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert not (folder / "run").exists(), f"{cell} was refused after its folder was made"
    return sentence.removeprefix("error: ")


def label(option: str) -> str:
    """How a row or column is called in the tables."""
    return {"loss=vlb loss.variance=learned prediction.outputs=2": "`loss=vlb`, learned variance"}.get(
        option, f"`{option}`"
    )


def line(row: str, marks: list[str]) -> str:
    return f"| {label(row)} | " + " | ".join(marks) + " |"


def head(columns: list[str]) -> list[str]:
    return ["| | " + " | ".join(map(label, columns)) + " |", "|---" * (len(columns) + 1) + "|"]


TABLES = ("process", "loss", "network")
ROWS = [(name, row) for name in TABLES for row in table(name)[0]]


@pytest.mark.parametrize(("name", "row"), ROWS, ids=lambda x: x.replace(" ", ","))
def test_every_pair_trains_or_is_refused(cli, tmp_path, name, row):
    columns = table(name)[1]
    marks = ["–" if outcome(cli, tmp_path, row, column) else "✓" for column in columns]
    assert line(row, marks) in README.read_text().splitlines(), line(row, marks)


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_has_every_row_and_no_other(name):
    lines = README.read_text().splitlines()
    rows, columns = table(name)
    start = lines.index(head(columns)[0])
    found = [text.split(" | ")[0] for text in lines[start + 2 : start + 2 + len(rows)]]
    assert found == [f"| {label(row)}" for row in rows]
    assert not lines[start + 2 + len(rows)].startswith("|")


def main() -> None:
    """Print the tables, and the sentence of each refusal."""
    import contextlib
    import io
    import os
    import tempfile

    from diffcli.cli import main as run

    class Done:
        code, err = 0, ""

    def cli(*argv):
        done, err = Done(), io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            done.code = run(list(argv))
        done.err = err.getvalue()
        return done

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        refused = {}
        for name in TABLES:
            rows, columns = table(name)
            print("\n".join(head(columns)), flush=True)
            for row in rows:
                found = [outcome(cli, Path(folder), row, column) for column in columns]
                refused |= {(row, c): f for c, f in zip(columns, found, strict=True) if f}
                print(line(row, ["–" if f else "✓" for f in found]), flush=True)
            print()
        for cell, sentence in refused.items():
            print(*words(*cell)[1 : -len(RUN)], "->", sentence)


if __name__ == "__main__":
    main()
