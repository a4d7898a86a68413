"""What `diffcli compare` found, as tables and as advice."""

import csv
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from diffcli.writing import whole, write_text

DISTANCES = ("sliced_wasserstein", "mmd2")
ALIKE = 1.05  # errors within this factor of each other are called alike


@dataclass
class Cell:
    """One sampler at one budget; None where it chooses its own steps."""

    sampler: str
    kind: str
    budget: int | None
    steps: int | None
    nfe: float | None = None
    error: float | None = None
    sliced_wasserstein: float | None = None
    mmd2: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass
class Comparison:
    """All cells, with the scale and the noise of the distances, and what to use.

    halves, noise: mean and sd of a distance between two sets of m items of the data.  known_to: how far off the PF-ODE's
    end itself may be.
    """

    budgets: list[int]
    halves: dict[str, float]
    noise: dict[str, float]
    m: int
    endpoints: int
    samplers: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    best: dict[int, dict[str, list[str]]] = field(default_factory=dict)
    known_to: float = 0.0
    no_end: str = ""
    held_out: bool = True
    title: str = ""
    warnings: list[str] = field(default_factory=list)

    def column(self, what: str, budget: int) -> dict[str, float]:
        """A measure of every sampler that has it at this budget."""
        cells = [c for c in self.cells if c.budget == budget and getattr(c, what) is not None]
        return {c.sampler: getattr(c, what) for c in cells}

    def judge(self, ruler) -> None:
        """At each budget: the ODE samplers whose error is like the least, all that no distance tells from the best, and one to use.

        That is the one of least error that no distance tells from the best, or else the best by distance.
        """
        for budget in self.budgets:
            errors = self.column("error", budget)
            limit = max(min(errors.values(), default=0) * ALIKE, 3 * self.known_to)
            by_error = sorted((who for who, e in errors.items() if e <= limit), key=errors.get)
            distances = {name: ruler.as_good(self.column(name, budget), name) for name in DISTANCES}
            both = [who for who in distances["sliced_wasserstein"] if who in distances["mmd2"]]
            by_distance = both or distances["sliced_wasserstein"]
            use = next((who for who in by_error if who in by_distance), next(iter(by_distance or by_error), None))
            self.best[budget] = {"use": use, "error": by_error, "distance": by_distance, **distances}

    def perfect(self, name: str, distance: float) -> bool:
        """Whether it is what two halves of the data may give."""
        return distance <= self.halves[name] + 2 * self.noise[name]

    def adaptive(self) -> list[Cell]:
        """Those that choose their own steps."""
        return [c for c in self.cells if c.budget is None]

    def fixed(self) -> dict[str, str]:
        """Name and kind of the others."""
        chosen = {c.sampler for c in self.adaptive()}
        return {name: kind for name, kind in self.samplers.items() if name not in chosen}

    def results(self) -> dict:
        """For run.json."""
        whole = asdict(self)
        return {
            key: whole[key] for key in ("cells", "refused", "best", "halves", "noise", "m", "endpoints", "known_to")
        }


TABLES = {  # measure -> its heading and how a number is written
    "error": ("error to the end of the PF-ODE, ODE samplers", "{:.2e}"),
    "sliced_wasserstein": ("sliced Wasserstein distance to the data", "{:.4f}"),
    "mmd2": ("MMD^2 to the data", "{:.5f}"),
    "seconds": ("seconds", "{:.2f}"),
}


def table(found: Comparison, what: str) -> list[list[str]]:
    """One row a sampler, one column a budget: the number, * where it is the best or not told from it, (NFE) where fewer."""
    form, rows = TABLES[what][1], []
    by_place = {(c.sampler, c.budget): c for c in found.cells}
    for name, kind in found.fixed().items():
        if what != "error" or kind == "ode":
            rows.append([name, *(_cell(found, by_place.get((name, b)), what, form) for b in found.budgets)])
    return [["sampler", *(f"NFE {b}" for b in found.budgets)], *rows]


def _cell(found: Comparison, cell: Cell | None, what: str, form: str) -> str:
    value = None if cell is None else getattr(cell, what)
    if value is None:
        return "failed" if cell is not None and cell.note else "–"
    below = what == "error" and value < 3 * found.known_to
    text = f"<{form.format(3 * found.known_to)}" if below else form.format(value)
    star = "*" if cell.sampler in found.best[cell.budget].get(what, ()) else ""
    return text + star + (f" ({cell.nfe:.0f})" if round(cell.nfe) != cell.budget else "")


def adaptive_table(found: Comparison) -> list[list[str]]:
    """The samplers that choose their own steps, with the evaluations that they took."""
    rows = [["sampler", "NFE", "error", "sliced W", "MMD^2", "seconds"]]
    for c in found.adaptive():
        if c.note:
            rows.append([c.sampler, "failed", *"––––"])
            continue
        numbers = [("error", "{:.2e}"), ("sliced_wasserstein", "{:.4f}"), ("mmd2", "{:.5f}"), ("seconds", "{:.2f}")]
        shown = ["–" if getattr(c, w) is None else form.format(getattr(c, w)) for w, form in numbers]
        rows.append([c.sampler, f"{c.nfe:.0f}", *shown])
    return rows


def advice(found: Comparison) -> list[str]:
    """Which sampler to use at each budget, and why."""
    lines = []
    for budget, best in found.best.items() if found.fixed() else ():
        errors, distances = found.column("error", budget), found.column("sliced_wasserstein", budget)
        why = []
        if best["error"]:
            first, *others = best["error"]
            known = 3 * found.known_to
            size = f"below {known:.1e}, which is all that is known" if errors[first] < known else f"{errors[first]:.2e}"
            why.append(f"least error {_named(first, size, others, 'alike')}")
        if best["distance"]:
            first, *others = best["distance"]
            size = f"{distances[first]:.4f}"
            if all(found.perfect(name, found.column(name, budget)[first]) for name in DISTANCES):
                size += ", as two halves of the data"
            why.append(f"least distance {_named(first, size, others, 'not told from it')}")
        use = f"use {best['use']}: " if best["use"] else ""
        lines.append(f"NFE {budget}: {use}" + ("; ".join(why) or "no sampler has a step that fits"))
    return lines


def _named(first: str, size: str, others: list[str], how: str) -> str:
    more = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return f"{first} ({size}{f'; {how}: {more}' if others else ''})"


def notes(found: Comparison) -> list[str]:
    """What the numbers are, and what is missing."""
    h, s = found.halves["sliced_wasserstein"], found.noise["sliced_wasserstein"]
    lines = [
        f"error: median over {found.endpoints} items of |x - end| / (alpha sqrt(d)), the units of the data, from the same starts;"
        f" the end is known to {found.known_to:.1e}",
        f"distance: {found.m} samples to {found.m} items of the data; two halves of the data are {h:.4f} ± {s:.4f} apart,"
        f" MMD^2 {found.halves['mmd2']:.5f} ± {found.noise['mmd2']:.5f}",
        "* the best, and what is within 5 % of its error or 2 ± of its distance (told apart: by either distance);"
        " (NFE) where fewer were used",
    ]
    if not found.known_to:
        lines = lines[1:]  # no ODE sampler, or no end
    if not found.held_out:
        lines.append("note: these items of the data are not held out from training")
    lines += [f"note: {sentence}" for sentence in found.warnings]
    if found.no_end:
        lines.append(f"note: no error, since the end of the PF-ODE could not be found: {found.no_end}")
    lines += [f"left out: {name}: {why}" for name, why in found.refused.items()]
    cells = [c for c in found.cells if c.note]
    lines += [f"failed: {c.sampler}" + (f" at NFE {c.budget}" if c.budget else "") + f": {c.note}" for c in cells]
    return lines


def text(found: Comparison) -> str:
    """What is printed."""
    lines = []
    for what in ("error", "sliced_wasserstein", "seconds"):
        rows = table(found, what)
        if len(rows) > 1:
            lines += [TABLES[what][0], *_aligned(rows), ""]
    if found.adaptive():
        lines += ["samplers that choose their own steps", *_aligned(adaptive_table(found)), ""]
    return "\n".join([*lines, *advice(found), "", *notes(found)])


def _aligned(rows: list[list[str]]) -> list[str]:
    """Numbers below each other, what follows them too."""
    columns = []
    for column in zip(*rows, strict=True):
        cells = [re.fullmatch(r"(.*?)(\*?(?: \(\d+\))?)", cell).groups() for cell in column]
        left, right = (max(len(cell[i]) for cell in cells) for i in (0, 1))
        columns.append([number.rjust(left) + more.ljust(right) for number, more in cells])
    names = [row[0] for row in rows]
    columns[0] = [name.ljust(max(map(len, names))) for name in names]
    return ["  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def markdown(found: Comparison) -> str:
    """The same with every measure, in Markdown."""
    lines = [f"# {found.title}", "", *(f"- {line}" for line in advice(found)), ""]
    for what, (heading, _) in TABLES.items():
        rows = table(found, what)
        if len(rows) > 1:
            lines += [f"## {heading[0].upper()}{heading[1:]}", "", *_piped(rows), ""]
    if found.adaptive():
        lines += ["## Samplers that choose their own steps", "", *_piped(adaptive_table(found)), ""]
    return "\n".join([*lines, *(f"- {line}".replace("- * ", "- \\* ") for line in notes(found))]) + "\n"


def _piped(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    shown = [[f"`{row[0]}`", *(c.replace("*", "\\*") for c in row[1:])] for row in body]
    return [f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *shown)]


def write(found: Comparison, path: Path) -> str:
    """compare.csv and compare.md in the folder; what to print."""
    with whole(path / "compare.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Cell)])
        for cell in found.cells:
            values = asdict(cell).values()
            writer.writerow(["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in values])
        writer.writerows([name, "", "", "", "", "", "", "", "", why] for name, why in found.refused.items())
    write_text(path / "compare.md", markdown(found))
    return text(found)
