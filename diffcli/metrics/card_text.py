"""A card for a person: as lines on screen, and as Markdown."""

import math

from diffcli.metrics.card import Card, Figure, flat

ARROWS = {"lower": "↓", "higher": "↑"}


def rounded(mean: float | None, sd: float | None = None) -> str:
    """`mean ± sd`, sd to two figures and mean to the same place; four figures of mean alone; – for None."""
    if mean is None:
        return "–"
    if not sd:
        return f"{mean:.4g}" + ("" if sd is None else " ± 0")
    places = 1 - math.floor(math.log10(sd))
    if not -1 <= places <= 6:
        return f"{mean:.4g} ± {sd:.2g}"
    places = max(places, 0)
    return f"{mean:.{places}f} ± {sd:.{places}f}"


def rows(card: Card) -> list[list[str]]:
    """Measure with the direction that is better, samples, real items at the same count."""
    found = [["measure", f"samples{_repeats(card)}", "real items"]]
    for f in card.figures:
        name = f"{f.label} {ARROWS[f.better]}" + (" !" if f.warning else "")
        found.append([name, rounded(f.mean, f.sd), rounded(f.floor_mean, f.floor_sd)])
    return found


def _repeats(card: Card) -> str:
    repeats, n = card.draw.get("repeats", 1), card.protocol.get("n")
    return f", mean ± sd of {repeats} × {n}" if repeats > 1 else f", {n}"


def notes(card: Card) -> list[str]:
    """What the columns are, then each warning once."""
    lines = []
    floors = dict.fromkeys(f.what_floor for f in card.figures if f.what_floor)
    for floor in floors:
        of = [f for f in card.figures if f.what_floor == floor]
        lines.append(("real items: " if len(floors) == 1 else f"real items of {_names(of)}: ") + floor)
    if card.memorisation.get("text"):
        lines.append(card.memorisation["text"])
    warned: dict[str, list[Figure]] = {}
    for f in card.figures:
        if f.warning:
            warned.setdefault(f.warning, []).append(f)
    lines += [f"warning: {_names(of)}: {sentence}" for sentence, of in warned.items()]
    return lines + [f"warning: {sentence}" for sentence in card.warnings]


def _names(figures: list[Figure]) -> str:
    return ", ".join(f.label for f in figures)


def text(card: Card) -> list[str]:
    """The lines that are printed."""
    table = rows(card)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in table]
    return [*lines, *notes(card)]


def markdown(card: Card) -> str:
    """The whole card: figures, notes, and every field of its protocol, model, draw and versions."""
    head, *body = rows(card)
    lines = [f"# {card.title}", "", *piped([head, *body]), "", *(f"- {line}" for line in notes(card)), ""]
    for title, node in (
        ("Protocol (compare only cards that share it)", card.protocol),
        ("Model", card.model),
        ("Draw", card.draw),
        ("Versions", card.versions),
    ):
        pairs = [[f"`{key}`", _plain(value)] for key, value in flat(node).items()]
        if pairs:
            lines += [f"## {title}", "", *piped([["field", "value"], *pairs], "---"), ""]
    values = [
        [f.label, " ".join(f"{v:.6g}" for v in f.values), " ".join(f"{v:.6g}" for v in f.floor) or "–"]
        for f in card.figures
    ]
    lines += ["## Every value", "", *piped([["measure", "of each repeat", "of each draw of real items"], *values]), ""]
    return "\n".join([*lines, f"diffcli evaluate, {card.made}"]) + "\n"


def _plain(value) -> str:
    return "–" if value is None else str(value)


def piped(table: list[list[str]], side: str = "---:") -> list[str]:
    """A table of Markdown from its rows, the first its head; all but the first column to the right."""
    head, *body = table
    rule = ["---", *[side] * (len(head) - 1)]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, rule, *body)]
    return [f"| {' | '.join(row)} |" for row in cells]
