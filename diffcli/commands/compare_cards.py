"""`diffcli compare 'cards=[DIR1,DIR2]'`: the cards of evaluations side by side, if they share one protocol."""

import glob
from pathlib import Path

from diffcli.commands.common import plain, recorded, typed
from diffcli.commands.model import GROUPS
from diffcli.commands.run_folder import choose, create, say, write_text
from diffcli.commands.settings import check_settings
from diffcli.errors import UsageError
from diffcli.explain.cards_plot import plot
from diffcli.metrics.card import Card, check_alike
from diffcli.metrics.cards_table import csv_text, markdown, text

OTHERS = (
    "ckpt=",
    "network=",
    "samplers=",
    "nfe=",
    "sde=",
    "data=",
    "weights=",
    "n=",
    "split=",
    "last=",
    "label=",
)  # of drawing
OTHERS += ("vector=", "guidance")


def run(cfg) -> int:
    config = plain(cfg)
    check_settings(config | {"dtype": "float32"}, GROUPS)  # which only drawing fills in
    if other := next((key for key in OTHERS if typed(key)), None):
        raise UsageError(
            f"cards= puts figures side by side that are there, and {other} would draw new ones",
            f"cards= without {other}",
        )
    cards = read(config["cards"])
    check_alike(cards)
    path = choose("compare", config)
    if cfg.dry_run:
        say(f"would compare {len(cards)} cards: {', '.join(cards)}")
        return 0
    folder = create(path, "compare", config)
    with recorded(folder):
        write_text(path / "compare.csv", csv_text(cards))
        write_text(path / "compare.md", markdown(cards))
        plot(cards, path / "compare.png")
        folder.write("finished", results={"cards": list(cards)})
    for line in text(cards):
        say(line)
    for file in ("compare.csv", "compare.md", "compare.png"):
        say(f"  {path / file}")
    return 0


def read(named: list[str] | str) -> dict[str, Card]:
    """The cards by the shortest names that tell them apart.  Raises UsageError for fewer than 2, one twice, or no card."""
    named = [named] if isinstance(named, str) else named
    paths = []
    for name in named:
        found = sorted(glob.glob(str(Path(name).expanduser()))) if glob.has_magic(name) else [name]
        if not found:
            raise UsageError(f"cards={name}: there is nothing of that name")
        paths += [p for p in found if not glob.has_magic(name) or Path(p, "card.json").is_file() or p.endswith(".json")]
    if len(paths) < 2:
        raise UsageError(
            f"cards= names {len(paths)} card{'s' * (len(paths) != 1)}, which leaves nothing to compare",
            "'cards=[DIR1,DIR2]'",
        )
    files = [_file(path) for path in paths]
    if twice := next((p for i, p in enumerate(paths) if files[i] in files[:i]), None):
        raise UsageError(f"cards= names {twice} twice")
    return dict(zip(_names(files), map(Card.read, paths), strict=True))


def _file(path: str) -> Path:
    found = Path(path).expanduser().resolve()
    return found / "card.json" if found.is_dir() else found


def _names(files: list[Path]) -> list[str]:
    """As many of the last parts of each path, without card.json, as it takes to tell them apart."""
    parts = [(f.parent if f.name == "card.json" else f).parts for f in files]
    for k in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-k:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(f) for f in files]
