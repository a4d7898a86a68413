"""`diffcli report`: the runs of a sweep, or of any folder, side by side as a table and a picture, best first."""

from pathlib import Path

from diffcli.commands import report_seeds
from diffcli.commands.collected import collect
from diffcli.commands.common import plain
from diffcli.commands.figures import better
from diffcli.commands.report_table import Table, number, tables, value_of
from diffcli.commands.report_text import lines, markdown, sheet
from diffcli.commands.run_folder import say
from diffcli.commands.settings import check_settings
from diffcli.errors import UsageError
from diffcli.explain import report_plot
from diffcli.writing import unwritten, write_text

FILES = ("report.csv", "report_seeds.csv", "report.md", "report.png")


def run(cfg) -> int:
    config = plain(cfg)
    check_settings(config, set())
    folder = Path(config["dir"]).expanduser()
    if not folder.is_dir():
        raise UsageError(f"dir={folder} is not a folder", "dir=DIR, where a sweep's runs are")
    runs, unread = collect(folder)
    if not runs:
        raise UsageError(
            f"dir={folder} holds no run" + "".join(f"; {line}" for line in unread), "dir=DIR, where runs are"
        )
    found = tables(runs, config["by"])
    to = folder if config["out"] is None else Path(config["out"]).expanduser()
    for table in found:
        for line in lines(table):
            say(line)
    for line in unread:
        say(f"warning: {line}")
    panels = [panel for table in found if (panel := panel_of(table)) is not None]
    means = report_seeds.sheet(found)
    made = [name for name in FILES if (name != "report_seeds.csv" or means) and (name != "report.png" or panels)]
    if config["dry_run"]:
        say(f"would write {', '.join(made)} in {to}")
        return 0
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(to, error) from error
    write_text(to / "report.csv", sheet(found))
    write_text(to / "report.md", markdown(found, f"Runs in {folder}", "report.png" if panels else None))
    if means:
        write_text(to / "report_seeds.csv", means)
    if panels:
        report_plot.plot(panels, to / "report.png")
    for name in FILES:
        if name not in made:
            (to / name).unlink(missing_ok=True)  # of an earlier report
    for name in made:
        say(f"  {to / name}")
    return 0


def panel_of(table: Table) -> report_plot.Panel | None:
    """What is drawn of a table; None where it has no figure."""
    if table.by is None:
        return None
    points = []
    for run in table.ranked:
        value = value_of(run, table.by)
        if value is not None and value.sound:
            points.append(
                report_plot.Point(run.name, {k: run.settings.get(k) for k in table.varied}, value.value, value.error)
            )
    names = dict.fromkeys(table.varied, number)
    panel = report_plot.Panel(
        table.command, table.by, better(table.by), table.varied, points, names, compares=not table.own
    )
    return panel if points else None
