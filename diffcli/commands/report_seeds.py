"""Runs that were set alike but for their seed, as one row of means."""

import csv
import io
import math
import statistics
from dataclasses import dataclass

from diffcli.commands.collected import Run
from diffcli.commands.figures import Value, better
from diffcli.commands.report_table import Table, number, value_of
from diffcli.metrics.card_text import ARROWS, rounded

SEED = "seed"


@dataclass(frozen=True)
class Alike:
    """Finished runs that differ in their seed alone."""

    runs: list[Run]

    def of(self, figure: str) -> tuple[Value, int] | None:
        """Mean and standard deviation over the runs that have the figure, and how many those are; None where none has it.

        A run whose figure is not finite counts: a mean without the seeds that diverged would be of the lucky ones.
        """
        found = [value.value for run in self.runs if (value := value_of(run, figure)) is not None]
        if not found:
            return None
        if not all(map(math.isfinite, found)):
            return Value(math.nan), len(found)
        return Value(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None), len(found)


def settings(table: Table) -> list[str]:
    """What differs, but for the seed."""
    return [key for key in table.varied if key != SEED]


def alike(table: Table) -> list[Alike]:
    """Runs by how they were set, the best mean first, of each seed the newest; empty where nothing has several seeds."""
    found: dict[tuple, dict[str, Run]] = {}
    for run in sorted(table.ranked, key=lambda run: run.started):
        of = found.setdefault(tuple(repr(run.settings.get(key)) for key in settings(table)), {})
        of[repr(run.settings.get(SEED))] = run
    if all(len(seeds) == 1 for seeds in found.values()):
        return []
    return sorted((Alike([*seeds.values()]) for seeds in found.values()), key=lambda row: _order(row, table.by))


def _order(row: Alike, by: str | None) -> tuple:
    found = None if by is None else row.of(by)
    if found is None or not found[0].sound:
        return (1, 0.0)
    return (0, found[0].value if better(by) == "lower" else -found[0].value)


def rows(table: Table, varied: list[str], figures: list[str]) -> list[list[str]]:
    """Head and one row for each way that runs were set: how many seeds, and `mean ± sd` over them."""
    found = [
        ["seeds", *(key for key in varied if key != SEED), *(f"{name} {ARROWS[better(name)]}" for name in figures)]
    ]
    for row in alike(table):
        set_to = [number(row.runs[0].settings.get(key)) for key in varied if key != SEED]
        found.append([str(len(row.runs)), *set_to, *(_shown(row, name) for name in figures)])
    return found


def _shown(row: Alike, figure: str) -> str:
    found = row.of(figure)
    if found is None:
        return "–"
    value, n = found
    text = rounded(value.value, value.error) if value.sound else str(value.value)
    return text if n == len(row.runs) else f"{text} (of {n})"


def sheet(found: list[Table]) -> str | None:
    """A line of CSV for each way that runs were set, all digits: NAME_mean, NAME_sd, NAME_n.  None where no seeds repeat."""
    groups = [(table, row) for table in found for row in alike(table)]
    if not groups:
        return None
    tables = [table for table in found if alike(table)]
    varied = list(dict.fromkeys(key for table in tables for key in settings(table)))
    figures = list(dict.fromkeys(name for table in tables for name in table.figures))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"setting_{key}" if key in ("command", "seeds") else key for key in varied]
    writer.writerow(
        ["command", "seeds", *heads, *(f"{name}_{what}" for name in figures for what in ("mean", "sd", "n"))]
    )
    for table, row in groups:
        set_to = row.runs[0].settings
        line = [
            table.command,
            len(row.runs),
            *(_cell(set_to.get(key)) if key in table.varied else "" for key in varied),
        ]
        for name in figures:
            value, n = row.of(name) or (None, 0)
            line += ["" if value is None else repr(value.value), "" if value is None else _cell(value.error), n or ""]
        writer.writerow(line)
    return file.getvalue()


def _cell(value) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
