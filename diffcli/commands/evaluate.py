"""`diffcli evaluate`: draw samples, measure them against data, and write the card."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np

from diffcli.commands.build import check_type
from diffcli.commands.common import pick_device, recorded
from diffcli.commands.conditions import conditions
from diffcli.commands.evaluation import VERSIONS, card_of, measures_of, network_of
from diffcli.commands.given import Given, load_given
from diffcli.commands.going_on import find_place
from diffcli.commands.guidance import guide
from diffcli.commands.model import Model, check_shape, load_model
from diffcli.commands.partial import Partial, chunks
from diffcli.commands.quick import quicken
from diffcli.commands.run_folder import say, write_text
from diffcli.commands.walk import Walk, plan_walk, stream
from diffcli.data.pictures import is_image
from diffcli.errors import UsageError
from diffcli.explain import card_picture, neighbours_picture
from diffcli.metrics.card_text import markdown, text
from diffcli.metrics.evaluation import evaluate
from diffcli.metrics.feature_measures import FeatureMeasures
from diffcli.metrics.measures import fitting, some
from diffcli.metrics.neighbours import MemorisationCheck
from diffcli.metrics.taken import Taken
from diffcli.sampling import padded

SHOWN = 64  # images of the data in the picture
FILES = ("card.md", "card.json", "card.png", "neighbours.png", "samples.npy")


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = load_model(cfg, device, shares=True) if cfg.samples is None else load_given(cfg)
    config = model.config
    check_type(config["n"], int, "n")
    if config["n"] < 2:
        raise UsageError(f"n={config['n']} samples are too few to compare with data: at least 2 are needed")
    if cfg.samples is None:
        model.given = conditions(model)
        guide(model, device)
        quicken(model.denoiser, config)
    walk = plan_walk(config, model) if cfg.samples is None else None
    if cfg.samples is not None and cfg.keep_samples:
        raise UsageError("keep_samples=true keeps the samples drawn, and samples= are there already", "one of the two")
    given = None if cfg.samples is None else Given(model, config["n"], config["repeats"])
    items = model.data.split(config["split"])
    check_shape(model, items[0][0].shape, "the data")
    config["compared"] = fitting(config["compared"], model.shape)
    network = network_of(model, device)
    place = find_place("evaluate", config, walk.fit if walk else "")
    path, n = place.path, config["n"] * config["repeats"]
    if place.finished:
        return 0
    if cfg.dry_run:
        say(
            f"would measure {cfg.repeats} × {cfg.n} samples of {model.source} against {len(items)} items of the {cfg.split} split"
        )
        return 0
    folder = place.create()
    keeps = {"samples": "samples.npy"} if config["keep_samples"] else {}
    with recorded(folder), place.rows(n, padded(n, config["batch_size"]), "sample", keeps) as rows:
        measures = measures_of(model, items, network)

        def take() -> Taken:
            reading = next((m.collector() for m in measures if isinstance(m, FeatureMeasures)), None)
            return Taken(model.data.transform, config["compared"], reading)

        batches = _drawn(rows, walk, model, n, device) if given is None else given.batches(config["batch_size"])
        found = evaluate(batches, config["n"], measures, take)
        card = card_of(model, walk, items, measures, found, device)
        if config["neighbours"]:
            card.memorisation = _memorisation(model, found.first, path)
        card.made = datetime.now().astimezone().isoformat(timespec="seconds")
        card.versions = {name: folder.record["versions"][name] for name in VERSIONS}
        write_text(path / "card.json", card.dump())
        write_text(path / "card.md", markdown(card))
        real = some(items, SHOWN if is_image(model.shape) else config["compared"]).numpy()
        card_picture.draw(card, found.first.first.numpy(), real, model.data.transform.levels, path / "card.png")
        figures = {f.name: {"mean": f.mean, "sd": f.sd} for f in card.figures}
        results = {"figures": figures, "memorised": card.memorisation.get("memorised"), "warnings": card.warnings}
        rows.finish()
        folder.write("finished", steps=card.draw.get("steps"), nfe=card.draw.get("nfe"), results=results)
        rows.remove()
    for line in [card.title, *text(card)]:
        say(line)
    for file in FILES:
        if (path / file).exists():
            say(f"  {path / file}")
    return 0


def _drawn(rows: Partial, walk: Walk, model: Model, n: int, device) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The samples that are on disk already, once more, and then the others, which go there."""
    if rows.rows:
        yield from zip(chunks(rows["samples"]), chunks(rows["nfe"]), strict=True)
    for x, nfe in stream(walk, model, model.config | {"n": n}, device, rows.rows):
        rows.append(samples=x, nfe=nfe)
        yield x, nfe


def _memorisation(model: Model, taken: Taken, path: Path) -> dict:
    """What the neighbours among the training items say of the first samples, with the picture of the nearest."""
    data, most = model.data, taken.compared
    held_out = data.split("test") if data.held_out else None
    check = MemorisationCheck(data.split("train"), held_out, most=most)
    check.add(taken.first)
    found = check.result()
    neighbours_picture.draw(check, found, data.transform.levels, path / "neighbours.png")
    return asdict(found) | {"text": found.verdict}
