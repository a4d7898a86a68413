"""Runs of one command as a table: what differs between them are the columns, what they are judged by the order."""

import math
from dataclasses import dataclass, field

from diffcli.commands.collected import Run
from diffcli.commands.figures import MAIN, Value, better
from diffcli.errors import UsageError

# what val_loss is a loss of: where it differs, so does what the number means
OWN_LOSS = (
    "loss",
    "sde",
    "schedule",
    "prediction",
    "data",
    "levels",
    "coupling",
    "task",
    "condition",
    "drop",
    "source",
)
OF_MODEL = ("ckpt", "sde", "schedule", "prediction", "network", "data", "out")  # differ with the model that is measured
KINDS = ("train", "nll", "evaluate", "sample")  # in this order; others after them
SEVERAL = 2


@dataclass
class Table:
    """Runs of `command`: `ranked` best first by `by`, the finished ones without that figure after them, then the `others`.

    varied: the settings that differ, as columns.  same: those that do not.  figures: the columns of figures.
    """

    command: str
    by: str | None
    ranked: list[Run]
    others: list[Run]
    varied: list[str]
    same: dict[str, object]
    figures: list[str]
    notes: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)  # settings that differ and make `by` another figure for each run


def value_of(run: Run, figure: str) -> Value | None:
    """A figure of a run, or one that another run has measured of its model; None where there is none."""
    if figure in run.figures:
        return run.figures[figure]
    return next((of.figures[figure] for of in run.linked.values() if figure in of.figures), None)


def tables(runs: list[Run], by: str | None) -> list[Table]:
    """A table for each command.  Raises UsageError where no run has the figure that is asked for."""
    commands = sorted({run.command for run in runs}, key=lambda c: (KINDS.index(c) if c in KINDS else len(KINDS), c))
    found = [_table(command, [run for run in runs if run.command == command], by) for command in commands]
    known = list(dict.fromkeys(name for table in found for name in table.figures))
    if by is not None and by not in known:
        raise UsageError(f"no run has a figure {by!r}", "by=" + "|".join(known) if known else "by=null")
    return found


def _table(command: str, runs: list[Run], by: str | None) -> Table:
    done = [run for run in runs if run.finished]
    own = list(dict.fromkeys(name for run in done for name in run.figures))
    linked = list(dict.fromkeys(name for run in done for of in run.linked.values() for name in of.figures))
    names = own + [name for name in linked if name not in own]
    chosen = by if by in names else next((name for name in [*MAIN.get(command, ()), *names] if name in names), None)
    varied, same = _differing(runs)
    ranked = sorted(done, key=lambda run: _order(run, chosen))
    table = Table(command, chosen, ranked, [run for run in runs if not run.finished], varied, same, names)
    if command == "train" and chosen in ("val_loss", "best_val_loss", "loss"):
        table.own = [key for key in varied if key.partition(".")[0] in OWN_LOSS]
    table.notes = _notes(table)
    return table


def _order(run: Run, by: str | None) -> tuple:
    value = None if by is None else value_of(run, by)
    if value is None or not value.sound:
        return (1, 0.0)
    return (0, value.value if better(by) == "lower" else -value.value)


def _differing(runs: list[Run]) -> tuple[list[str], dict[str, object]]:
    """The settings that differ, and those that are the same in all.

    What belongs to a part and follows from which one it is (a schedule's betas, a checkpoint's network) does not count, nor
    does what a part does not have, or a record of an older version does not tell.
    """
    whole = [run for run in runs if run.status != "refused"] or runs
    keys = list(dict.fromkeys(key for run in whole for key in run.settings))
    if len(whole) < SEVERAL:
        return [], {key: whole[0].settings[key] for key in keys}
    columns = {key: [repr(run.settings[key]) if key in run.settings else None for run in whole] for key in keys}
    differ = [key for key, values in columns.items() if len({*values} - {None}) > 1]
    same = {key: whole[0].settings[key] for key in keys if key not in differ and None not in columns[key]}
    implied = {
        key
        for key in differ
        for part in differ
        if (
            key.startswith(f"{part}.")
            or (part == "ckpt" and key.partition(".")[0] in OF_MODEL and key != part)
            or (part == "seed" and key.endswith(".seed"))
        )
        and _follows(columns[key], columns[part])
    }
    return [key for key in differ if key not in implied], same


def _follows(values: list, of: list) -> bool:
    return len(set(zip(values, of, strict=True))) == len(set(of))


def _notes(table: Table) -> list[str]:
    notes = []
    if table.own:
        notes.append(
            f"{table.by} is of each run's own loss, and {_listed(table.own)} differ: it does not compare these runs; "
            "a likelihood or a distance does (diffcli nll or evaluate of each, in this folder, then by=FIGURE)"
        )
    for command in ("nll", "evaluate"):
        measured = [run.linked[command] for run in table.ranked if command in run.linked]
        how = [key for key in _differing(measured)[0] if key.partition(".")[0] not in OF_MODEL] if measured else []
        if how:
            notes.append(
                f"the runs of {command} differ in {_listed(how)}: their figures do not compare the models alone"
            )
        if any(command in run.several for run in table.ranked):
            notes.append(f"of several runs of {command} on one model the newest is shown")
    if any(run.error for run in table.ranked):
        notes.append("not finite: figures of " + ", ".join(run.name for run in table.ranked if run.error))
    return notes


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:6]) + (", …" if len(keys) > 6 else "")


def number(value) -> str:
    """A setting as a person writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ",".join(number(v) for v in value) + "]"
    return str(value)
