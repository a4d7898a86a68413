"""The card of an evaluation: its figures with their errors, and every field that another must share to be compared with it."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from diffcli.errors import UsageError

VERSION = 1  # of the file
NAME = "card.json"
SAID = 4  # differing fields that are named with their values


@dataclass(frozen=True)
class Figure:
    """One measure: its value in each repeat, and what real items give at the same count.

    better: whether less or more is good.  floor: the values of real items, one a draw; what_floor says how they were drawn.
    values and floor are not finite nowhere: a measure that cannot be had is left out, with a warning.
    """

    name: str
    label: str
    better: Literal["lower", "higher"]
    values: list[float]
    floor: list[float] = field(default_factory=list)
    what_floor: str = ""
    warning: str = ""

    @property
    def mean(self) -> float:
        """Of the repeats."""
        return math.fsum(self.values) / len(self.values)

    @property
    def sd(self) -> float | None:
        """Of the repeats, `√(Σ (v - mean)² / (R - 1))`; None for one repeat."""
        return deviation(self.values)

    @property
    def floor_mean(self) -> float | None:
        """Of the real draws, None where there are none."""
        return math.fsum(self.floor) / len(self.floor) if self.floor else None

    @property
    def floor_sd(self) -> float | None:
        """Of the real draws."""
        return deviation(self.floor)


def deviation(values: list[float]) -> float | None:
    """Give the standard deviation of R values around their mean, with R - 1 below; None for fewer than 2."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


@dataclass
class Card:
    """What an evaluation found and how.

    protocol: nested fields that two cards must share to be compared.  model, draw: what was evaluated, and how it was
    sampled, which may differ.  figures: in the order shown.  memorisation: what the neighbours say, {} where not asked.
    """

    protocol: dict
    model: dict
    draw: dict
    figures: list[Figure]
    memorisation: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    versions: dict = field(default_factory=dict)
    made: str = ""
    title: str = ""

    def figure(self, name: str) -> Figure | None:
        """The measure of that name."""
        return next((f for f in self.figures if f.name == name), None)

    def dump(self) -> str:
        """As JSON; mean and sd stand beside the values, for those who read no further."""
        whole = asdict(self)
        for f, node in zip(self.figures, whole["figures"], strict=True):
            summary = {"mean": f.mean, "sd": f.sd, "floor_mean": f.floor_mean, "floor_sd": f.floor_sd}
            node |= summary
        head = {"card": VERSION, "title": self.title}
        return json.dumps(head | whole, indent=2, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path | str) -> "Card":
        """The card in a file, or in a run's folder.  Raises UsageError where there is none that this program reads."""
        path = Path(path).expanduser()
        file = path / NAME if path.is_dir() else path
        try:
            node = json.loads(file.read_text())
        except OSError as error:
            reason = f"there is no {NAME} in it" if path.is_dir() else error.strerror
            raise UsageError(
                f"{path}: {reason}", "a folder that diffcli evaluate wrote, or the card.json in it"
            ) from None
        except ValueError:
            raise UsageError(f"{file} is no JSON, so no card", "a card.json that diffcli evaluate wrote") from None
        if not isinstance(node, dict) or "card" not in node:
            raise UsageError(f"{file} is no card of diffcli evaluate", "a card.json that diffcli evaluate wrote")
        if node["card"] != VERSION:
            raise UsageError(f"{file} is a card of version {node['card']}, this program reads version {VERSION}")
        try:
            figures = [Figure(**{k: f[k] for k in Figure.__dataclass_fields__}) for f in node["figures"]]
            card = cls(**{k: node[k] for k in cls.__dataclass_fields__ if k != "figures"}, figures=figures)
            _check(card)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{file} is a card with a part missing or of another type ({error})") from None
        return card


def _check(card: Card) -> None:
    """Raise TypeError or ValueError where a part is not what it must be."""
    for name in ("protocol", "model", "draw"):
        if not isinstance(getattr(card, name), dict):
            raise TypeError(name)
    for f in card.figures:
        if not f.values or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in [*f.values, *f.floor]):
            raise ValueError(f"the values of {f.name}")


def flat(node: dict, prefix: str = "") -> dict:
    """Nested fields under dotted names."""
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differing(cards: dict[str, Card]) -> dict[str, dict[str, object]]:
    """The fields of the protocol in which the named cards are not all alike: field -> name -> value, None where it lacks it."""
    fields = {name: flat(card.protocol) for name, card in cards.items()}
    keys = dict.fromkeys(key for one in fields.values() for key in one)
    columns = {key: {name: one.get(key) for name, one in fields.items()} for key in keys}
    return {key: c for key, c in columns.items() if any(v != next(iter(c.values())) for v in c.values())}


def check_alike(cards: dict[str, Card]) -> None:
    """Raise UsageError, in one sentence that names the fields, unless all cards share one protocol."""
    fields = differing(cards)
    if not fields:
        return
    said = []
    for i, (key, column) in enumerate(fields.items()):
        values = dict.fromkeys(map(_short, column.values()))
        said.append(f"{key} ({', '.join(values)})" if i < SAID else key)
    raise UsageError(
        f"these cards cannot be compared, their protocols differ in {'; '.join(said)}",
        "diffcli evaluate again, with the same data, split, n and features",
    )


def _short(value) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def not_told_apart(figures: dict[str, Figure]) -> list[str]:
    """The names of the best mean and of those that are not told from it, best first.

    They are where `|difference| <= t √(s_a²/R_a + s_b²/R_b)`, t the 97.5 % quantile of Student's distribution with
    Welch's degrees of freedom; a figure without an sd is only told by its mean.  Welch 1947.
    """
    if not figures:
        return []
    sign = {"lower": 1, "higher": -1}
    order = sorted(figures, key=lambda name: sign[figures[name].better] * figures[name].mean)
    best = figures[order[0]]
    return [
        name
        for name in order
        if name == order[0] or abs(figures[name].mean - best.mean) <= _margin(figures[name], best)
    ]


def _margin(a: Figure, b: Figure) -> float:
    if a.sd is None or b.sd is None:
        return 0.0
    from scipy.stats import t

    va, vb = a.sd**2 / len(a.values), b.sd**2 / len(b.values)
    if va + vb == 0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a.values) - 1) + vb**2 / (len(b.values) - 1))
    return float(t.ppf(0.975, freedom)) * math.sqrt(va + vb)
