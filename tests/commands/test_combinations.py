"""Every pair of options trains five steps to a finite loss, or is refused before any work: the tables of the README.

python tests/commands/test_combinations.py [FILE]      writes them anew into FILE, the README
"""

import csv
import math
import shutil
import sys
from pathlib import Path

import pytest

from diffcli.paths import conf_dir

README = Path(__file__).resolve().parents[2] / "README.md"
SMALL = {  # settings that keep a network small
    "mlp": ["network.width=8", "network.blocks=1"],
    "unet": ["network.channels=4", "network.multipliers=[1,2]"],
    "dit": ["network.width=16", "network.depth=1", "network.heads=2"],
    "kde": ["preview.every=0"],
    "kernel": ["network.levels=3", "network.centres=20", "preview.every=0"],
}
MORE = {  # what an option cannot do without
    "sde=one": ["levels=one", "level.sigma=0.5"],
    "coupling=reflow": ["coupling.pairs=16", "coupling.steps=2", "ckpt=teacher/checkpoints/last.ckpt"],
}
FITTED = ("kde", "kernel")  # in closed form, without a trainer and a loss
DATA = ["data=moons", "data.n=200"]
RUN = [
    "trainer.max_steps=5",
    "trainer.log_every_n_steps=1",
    "batch_size=16",
    "preview.every=0",
    "trainer.limit_val_batches=0",
    "out=run",
]
TEACHER = ["train", *DATA, *SMALL["mlp"], *RUN[1:-1], "trainer.max_steps=1", "out=teacher"]


def options(group: str, *but: str) -> list[str]:
    return [f"{group}={p.stem}" for p in sorted((conf_dir() / group).glob("*.yaml")) if p.stem not in but]


def table(name: str) -> tuple[list[str], list[str]]:
    """The rows and columns of a table, as words of the command line."""
    losses = [*options("loss"), "loss=vlb loss.variance=learned prediction.outputs=2"]
    weights = [f"loss.weight={w}" for w in ("simple", "likelihood", "uniform", "min_snr", "edm", "v", "snr", "learned")]
    times = [f"loss.time={t}" for t in ("uniform", "levels", "lognormal", "importance")]
    networks = options("network", "exact", "diffusers_unet")  # one needs no training, the other an extra
    return {
        "process": ([*options("schedule", "none"), *options("prediction"), *losses, *weights, *times], options("sde")),
        "loss": (losses, [*options("prediction"), *networks, *options("coupling")]),
        "network": (networks, [*options("prediction"), *options("levels")]),
    }[name]


def words(*cell: str) -> list[str]:
    """The command line of a cell."""
    found = [w for option in cell for w in option.split()]
    network = next((w.removeprefix("network=") for w in found if w.startswith("network=")), None)
    more = [m for w in found for m in MORE.get(w, ())]
    data = DATA if network is None else ["data=digits"]
    run = RUN if network not in FITTED else RUN[-1:]
    return [*data, *(w for w in found if w != "sde=one"), *more, *SMALL[network or "mlp"], *run]


def outcome(cli, folder: Path, *cell: str) -> str:
    """Empty where the pair trains, else the sentence with which it is refused; anything else fails."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    if "coupling=reflow" in cell and not (folder / "teacher").exists():
        assert cli(*TEACHER).code == 0
    done = cli("train", *words(*cell))
    if done.code == 0:
        if not {f"network={name}" for name in FITTED} & set(cell):
            with (folder / "run/metrics.csv").open() as file:
                losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
            assert losses and all(map(math.isfinite, losses)), (cell, losses)
        assert (folder / "run/checkpoints/last.ckpt").is_file(), cell
        return ""
    assert done.code == 2, (cell, done.err)
    assert "Traceback" not in done.err, cell
    (sentence,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert not (folder / "run").exists(), f"{cell} was refused after its folder was made"
    return sentence.removeprefix("error: ")


def label(option: str) -> str:
    """How a row or column is called in the tables."""
    return "`vlb`, learned variance" if " " in option else f"`{option.removeprefix('loss.')}`"


def line(row: str, marks: list[str]) -> str:
    return f"| {label(row)} | " + " | ".join(marks) + " |"


def head(columns: list[str]) -> list[str]:
    return ["| | " + " | ".join(map(label, columns)) + " |", "|---" * (len(columns) + 1) + "|"]


TABLES = ("process", "loss", "network")
ROWS = [(name, row) for name in TABLES for row in table(name)[0]]


@pytest.mark.heavy
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


def main(readme: Path) -> None:
    """Put the tables into a file between its marks, and print the sentence of each refusal."""
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
        for name in TABLES:
            rows, columns = table(name)
            lines = head(columns)
            for row in rows:
                found = [outcome(cli, Path(folder), row, column) for column in columns]
                lines.append(line(row, ["–" if f else "✓" for f in found]))
                print(lines[-1], flush=True)
                for column, sentence in zip(columns, found, strict=True):
                    if sentence:
                        print(f"    {column}: {sentence}", flush=True)
            before, mark, after = readme.read_text().partition(f"<!-- table: {name} -->\n")
            assert mark, f"no mark for the table {name} in {readme}"
            after = after[after.index("<!-- end -->") :]
            readme.write_text(before + mark + "\n".join(lines) + "\n" + after)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else README).resolve())
