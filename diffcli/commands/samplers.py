"""`diffcli samplers`: every sampler there is, with its kind, its order, what a step costs and which SDEs it is for."""

import re
from dataclasses import dataclass

from diffcli.commands.common import plain
from diffcli.commands.options import config_dir, load, names, path
from diffcli.commands.run_folder import say
from diffcli.commands.settings import check_settings
from diffcli.commands.walk import build_sampler
from diffcli.diffusion.samplers import Sampler
from diffcli.errors import UsageError
from diffcli.help import first_comment

HEAD = ("sampler", "kind", "order", "declared for", "evaluations a step", "SDEs", "what it is")


@dataclass
class Described:
    """A sampler with what its yaml says of it: a line, and in brackets at its end its orders and evaluations."""

    sampler: Sampler
    about: str


def run(cfg) -> int:
    config = plain(cfg)
    check_settings(config, set())
    if config["out"] is not None:
        raise UsageError("samplers prints its table and writes no run", "diffcli samplers format=markdown > FILE")
    found = {name: described(name, config_dir()) for name in names("sampler", config_dir())}
    for line in {"text": text, "markdown": markdown}[config["format"]](rows(found)):
        say(line)
    return 0


def described(name: str, user: str | None) -> Described:
    """A sampler as its yaml makes it.  Raises UsageError that names the option."""
    try:
        sampler = build_sampler(load("sampler", name, user))
    except UsageError as error:
        raise UsageError(f"sampler={name}: {error.message}", error.hint) from error
    return Described(sampler, first_comment(path("sampler", name, user)))


def rows(found: dict[str, Described]) -> list[tuple[str, ...]]:
    """One row for each, the columns of HEAD; the kinds ode, sde, score one after the other."""
    kinds = ("ode", "sde", "score")
    order = sorted(found, key=lambda name: (kinds.index(found[name].sampler.kind), name))
    return [(name, *_columns(found[name])) for name in order]


def _columns(described: Described) -> tuple[str, ...]:
    sampler, about = described.sampler, described.about
    line, _, brackets = about.partition(" (") if about.endswith(")") else (about, "", "")
    told = re.match(r"order ([^,)]+)", brackets)
    number = "–" if sampler.order is None else str(sampler.order)
    if told and told[1] != number:  # which orders its settings make
        number += f" ({told[1]})"
    adaptive = sampler.evaluations is None
    grid = "–" if sampler.order is None else "any grid" if adaptive else "grid=uniform_lam"
    where = [sampler.needs or "all"] + ["no order on tables (ddpm, ncsn)"] * (
        sampler.clock == "t" and sampler.order is not None
    )
    cost = "adaptive" if adaptive else str(sampler.evaluations)
    return sampler.kind, number, " ".join(filter(None, (grid, sampler.declared_for))), cost, "; ".join(where), line


def text(table: list[tuple[str, ...]]) -> list[str]:
    """The table in columns."""
    widths = [max(len(row[i]) for row in (HEAD, *table)) for i in range(len(HEAD))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (HEAD, *table)]


def markdown(table: list[tuple[str, ...]]) -> list[str]:
    """The table in Markdown, the names and settings as code."""
    coded = [(f"`{row[0]}`", *row[1:3], re.sub(r"\S+=\S+", r"`\g<0>`", row[3]), *row[4:]) for row in table]
    return [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *coded)]
