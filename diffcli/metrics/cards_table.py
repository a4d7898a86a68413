"""Cards of one protocol side by side: lines on screen, CSV and Markdown."""

import csv
import io

from diffcli.metrics.card import Card, Figure, flat, not_told_apart
from diffcli.metrics.card_text import ARROWS, piped, rounded


def measures(cards: dict[str, Card]) -> dict[str, dict[str, Figure]]:
    """Each measure that a card has: name -> card -> figure, in the order of the cards."""
    names = dict.fromkeys(f.name for card in cards.values() for f in card.figures)
    found = {name: {who: card.figure(name) for who, card in cards.items()} for name in names}
    return {name: {who: f for who, f in column.items() if f is not None} for name, column in found.items()}


def heading(column: dict[str, Figure]) -> str:
    """The label of a measure, with the direction that is better."""
    first = next(iter(column.values()))
    return f"{first.label} {ARROWS[first.better]}"


def floor(column: dict[str, Figure]) -> str:
    """What real items give; the cards share a protocol, so any of them says it."""
    f = next((f for f in column.values() if f.floor), None)
    return "–" if f is None else rounded(f.floor_mean, f.floor_sd)


def how(card: Card) -> str:
    """The sampler and what it takes, in a few words."""
    sampler = str(card.draw.get("sampler", {}).get("name", "–"))
    nfe = (card.draw.get("nfe") or {}).get("mean")
    weights = card.model.get("weights")
    guidance = card.draw.get("guidance") or {}
    found = sampler + (f", NFE {nfe:.4g}" if nfe is not None else "") + (f", {weights} weights" if weights else "")
    return found + (f", {guidance.get('name')} {guidance.get('scale', '')}".rstrip() if guidance else "")


def table(cards: dict[str, Card]) -> list[list[str]]:
    """One row a measure, one column a card: * the best and what is not told from it, ! a figure with a warning."""
    rows = [["measure", *cards, "real items"]]
    for column in measures(cards).values():
        best = not_told_apart(column)
        cells = []
        for who in cards:
            f = column.get(who)
            cells.append("–" if f is None else rounded(f.mean, f.sd) + "*" * (who in best) + " !" * bool(f.warning))
        rows.append([heading(column), *cells, floor(column)])
    return rows


def notes(cards: dict[str, Card]) -> list[str]:
    """What the marks mean, who memorises, and what the cards are of."""
    repeats = {who: card.draw.get("repeats", 1) for who, card in cards.items()}
    said = sorted(set(repeats.values()))
    first = next(iter(cards.values()))
    lines = [
        f"mean ± sd of {' or '.join(map(str, said))} repeats of {first.protocol.get('n')} samples;"
        " * the best, and what a Welch test at 5 % does not tell from it"
    ]
    if 1 in said:
        lines.append("note: one repeat has no error bar, so a tie with it cannot be seen")
    lines += [f"{who}: {card.title}; {how(card)}" for who, card in cards.items()]
    lines += [
        f"{who}: {card.memorisation['text']}" for who, card in cards.items() if card.memorisation.get("memorised")
    ]
    versions = {tuple(flat(card.versions).items()) for card in cards.values()}
    if len(versions) > 1:
        lines.append("note: the cards were made with different versions, see compare.csv")
    warned: dict[tuple[str, str], list[str]] = {}
    for who, card in cards.items():
        for f in card.figures:
            if f.warning:
                warned.setdefault((f.label, f.warning), []).append(who)
    lines += [f"! {label}: {sentence} ({', '.join(who)})" for (label, sentence), who in warned.items()]
    return lines


def text(cards: dict[str, Card]) -> list[str]:
    """The lines that are printed."""
    rows = [[row[0], *(c if c.endswith(("*", "!")) else f"{c} " for c in row[1:])] for row in table(cards)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        lines.append(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        )
    return [*lines, "", *notes(cards)]


def markdown(cards: dict[str, Card]) -> str:
    """The table, its notes, and the protocol that all share."""
    head, *body = table(cards)
    shown = [[row[0], *(c.replace("*", "\\*") for c in row[1:])] for row in body]
    protocol = flat(next(iter(cards.values())).protocol)
    lines = [f"# {len(cards)} cards", "", *piped([head, *shown]), ""]
    lines += [f"- {line}".replace("- * ", "- \\* ").replace("; * ", "; \\* ") for line in notes(cards)]
    lines += [
        "",
        "## The protocol of all",
        "",
        *piped([["field", "value"], *([f"`{k}`", str(v)] for k, v in protocol.items())], "---"),
    ]
    return "\n".join(lines) + "\n"


def csv_text(cards: dict[str, Card]) -> str:
    """One line a card: what it is of, then mean, sd and the mean of real items of each measure, with every digit."""
    file = io.StringIO()
    columns = measures(cards)
    own = {who: flat({"model": c.model, "draw": c.draw, "versions": c.versions}) for who, c in cards.items()}
    keys = list(dict.fromkeys(key for fields in own.values() for key in fields))
    writer = csv.writer(file)
    writer.writerow(["card", *(f"{name}{part}" for name in columns for part in ("", "_sd", "_floor")), *keys])
    for who in cards:
        cells = []
        for column in columns.values():
            f = column.get(who)
            cells += [None] * 3 if f is None else [f.mean, f.sd, f.floor_mean]
        writer.writerow(
            [
                who,
                *("" if c is None else c for c in cells),
                *("" if own[who].get(k) is None else own[who][k] for k in keys),
            ]
        )
    return file.getvalue()
