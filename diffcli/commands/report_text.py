"""A report as lines on screen, as Markdown and as CSV."""

import csv
import io

from diffcli.commands import report_seeds
from diffcli.commands.collected import Run
from diffcli.commands.figures import Value, better
from diffcli.commands.report_table import Table, number, value_of
from diffcli.metrics.card_text import ARROWS, rounded

SHOWN = 4  # figures on screen; the files have all
WIDEST = 28  # of a cell on screen
WIDTH = 150  # of a line there
MEANS = "mean ± standard deviation over seeds"


def shown(value: Value | None) -> str:
    """`mean ± error` to the figures that count."""
    return "–" if value is None else rounded(value.value, value.error) if value.sound else str(value.value)


def rows(table: Table, varied: list[str], figures: list[str]) -> list[list[str]]:
    """Head and one row for each run that has finished, best first."""
    timed = [name for name in ("steps", "nfe") if name not in table.varied and _differ(table, name)]
    timed += ["seconds"] if _differ(table, "seconds", 0) else []
    found = [["run", *varied, *(f"{name} {ARROWS[better(name)]}" for name in figures), *timed]]
    for run in table.ranked:
        row = [run.name, *(number(run.settings.get(key)) for key in varied)]
        row += [shown(value_of(run, name)) for name in figures]
        found.append(row + [_count(getattr(run, name)) for name in timed])
    return found


def _differ(table: Table, name: str, more_than: int = 1) -> bool:
    return len({str(getattr(run, name)) for run in table.ranked if getattr(run, name) is not None}) > more_than


def _count(value) -> str:
    return "–" if value is None else f"{value:.0f}" if isinstance(value, float) and value >= 10 else f"{value:.3g}"


def ordered(table: Table) -> list[str]:
    """The figures with the one that the order is by in front."""
    return [name for name in table.figures if name == table.by] + [name for name in table.figures if name != table.by]


def title(table: Table) -> str:
    n, failed = len(table.ranked) + len(table.others), len(table.others)
    order = "in order of" if table.own else "best first by"
    by = f", {order} {table.by}" if table.by and len(table.ranked) > 1 else ""
    return f"{table.command}: {n} run{'s' * (n != 1)}{by}" + (f"; {failed} not finished" if failed else "")


def same(table: Table) -> str:
    """What all runs share, apart from what is not set."""
    return " ".join(f"{key}={number(value)}" for key, value in table.same.items() if value not in (None, [], ""))


def left(table: Table) -> list[str]:
    """A line for each run that has not finished: which, how it was set, and why."""
    return [f"{run.name} {run.status}{_set(table, run)}: {_why(run)}" for run in table.others]


def _set(table: Table, run: Run) -> str:
    keys = [
        key for key in run.settings if key in table.varied or (run.status == "refused" and _unlike(table, run, key))
    ]
    found = [f"{key}={number(run.settings[key])}" for key in keys]
    return f" ({' '.join(found)})" if found else ""


def _unlike(table: Table, run: Run, key: str) -> bool:
    """Whether what was typed for a job that was refused is another number than all runs have, or none at all."""
    typed, usual = run.settings[key], table.same.get(key)
    if key not in table.same or isinstance(usual, str | list | dict):
        return False
    try:
        return usual is None or float(str(typed)) != float(usual)
    except ValueError:
        return str(typed).lower() != number(usual)


def _why(run: Run) -> str:
    if run.error:
        return " ".join(run.error.split())
    at = f" at step {run.steps}" if run.steps else ""
    return {"running": "it is still being written", "stopped": f"saved{at}; resume=auto goes on"}.get(
        run.status, "no reason given"
    )


def lines(table: Table) -> list[str]:
    """The table on screen, of means where seeds repeat, with as many of the settings as fit."""
    varied, found = list(table.varied), [title(table)]
    while len(line := _columns(table, varied)) and max(map(len, line)) > WIDTH and len(varied) > 1:
        varied.pop()
    found += line
    if report_seeds.alike(table):
        found.append(f"  {MEANS}; each run is in report.md")
    if left_out := table.varied[len(varied) :]:
        found.append(f"  and {', '.join(left_out[:8])}{', …' * (len(left_out) > 8)} differ: see report.md")
    found += [f"  not finished: {line}" for line in left(table)]
    return found + [f"  note: {note}" for note in table.notes]


def _columns(table: Table, varied: list[str]) -> list[str]:
    if not table.ranked:
        return []
    cells = [
        [cell if len(cell) <= WIDEST else f"…{cell[1 - WIDEST :]}" for cell in row]
        for row in (report_seeds.rows if report_seeds.alike(table) else rows)(table, varied, ordered(table)[:SHOWN])
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def markdown(found: list[Table], heading: str, picture: str | None) -> str:
    """The report as Markdown."""
    text = [f"# {heading}", ""]
    for table in found:
        text += [f"## {title(table)}", ""]
        if same(table):
            text += [
                "<details><summary>the same in all of them</summary>",
                "",
                f"`{same(table)}`",
                "",
                "</details>",
                "",
            ]
        if report_seeds.alike(table):
            text += [f"{MEANS.capitalize()}:", "", *_piped(report_seeds.rows(table, table.varied, ordered(table)))]
            text += ["", "Each run:", ""]
        if table.ranked:
            text += [*_piped(rows(table, table.varied, ordered(table))), ""]
        text += [f"- not finished: {line}" for line in left(table)] + [""] * bool(table.others)
        text += [f"*{note}*\n" for note in table.notes]
    text += [f"![the figures]({picture})", ""] if picture else []
    return "\n".join(text)


def _piped(cells: list[list[str]]) -> list[str]:
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def sheet(found: list[Table]) -> str:
    """Every run as a line of CSV, with all digits: settings that differ, figures, and `NAME_error` beside those that have one."""
    varied = list(dict.fromkeys(key for table in found for key in table.varied))
    figures = list(dict.fromkeys(name for table in found for name in table.figures))
    runs = [(table, run) for table in found for run in [*table.ranked, *table.others]]
    values = {(id(run), name): value_of(run, name) for _, run in runs for name in figures}
    errors = [
        name
        for name in figures
        if any(v is not None and v.error is not None for v in (values[id(r), name] for _, r in runs))
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    more = [column for name in figures for column in ((name, f"{name}_error") if name in errors else (name,))]
    own = {"command", "run", "status", "seconds", "started", "error", *more}  # a setting of the same name is told apart
    heads = [f"setting_{key}" if key in own or key == "steps" else key for key in varied]
    writer.writerow(["command", "run", "status", *heads, *more, "steps", "nfe", "seconds", "started", "error"])
    for table, run in runs:
        row = [run.command, run.name, run.status]
        row += ["" if key not in table.varied else _cell(run.settings.get(key)) for key in varied]
        for name in figures:
            value = values[id(run), name]
            row.append("" if value is None else repr(value.value))
            if name in errors:
                row.append("" if value is None or value.error is None else repr(value.error))
        writer.writerow(
            [*row, *(_cell(v) for v in (run.steps, run.nfe, run.seconds, run.started)), " ".join(run.error.split())]
        )
    return file.getvalue()


def _cell(value) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
