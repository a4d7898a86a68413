"""`diffcli explain`: a process and its data in figures and pictures, with or without a trained model."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import open_dict

from diffcli.commands.build import build, check_type
from diffcli.commands.common import chosen, pick_device, plain, recorded, typed
from diffcli.commands.conditions import as_unconditional
from diffcli.commands.model import GROUPS, check_shape, load_model
from diffcli.commands.prepare import check_clock, measure
from diffcli.commands.run_folder import choose, create, say, write_text
from diffcli.commands.settings import check_settings
from diffcli.commands.source import refuse_source
from diffcli.commands.walk import DEFAULT_STEPS
from diffcli.data.base import Data
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.sde import SDE
from diffcli.errors import UsageError
from diffcli.explain.clocks import clocks
from diffcli.explain.noise_sequence import Sample, near_data, near_prior, neighbours, sample_of
from diffcli.explain.pictures import Scene, draw_all
from diffcli.explain.tables import CLOCKS, coefficients, fine_times, listed, quality_lines, text_table, write_csv

ROWS = 11  # times of the printed tables


@dataclass
class Subject:
    """What is explained: a process on some data, and a model of them where there is one."""

    sde: SDE
    data: Data
    denoiser: Denoiser | None
    source: str | None
    config: dict


def run(cfg) -> int:
    pick_device(cfg.device)  # the work is small and is done on the CPU
    subject = _subject(cfg)
    sde, config = subject.sde, subject.config
    if not sde.is_process:
        raise UsageError("a model of one noise level is no process: there is no way from data to noise to explain")
    sample = sample_of(subject.data, config["n"])
    ladders = _ladders(config, sde)
    path = choose("explain", config)
    name = _name(sde)
    if config["dry_run"]:
        say(f"would explain {name} on {sample.text} in {path}")
        return 0
    folder = create(path, "explain", config)
    with recorded(folder):
        results = {"process": name, "data": sample.text, "model": subject.source}
        results |= _figures(sde, sample, ladders, name, path)
        scene = Scene(sde, sample, subject.denoiser, name, config["seed"])
        files, results["score_errors"] = draw_all(scene, subject.data, path)
        for row in results["score_errors"]:
            say(f"score error {100 * row['error']:6.2f} %  at t = {row['t']:.3g}, sigma/alpha = {row['noise']:.3g}")
        write_text(path / "explain.json", json.dumps(results, indent=2) + "\n")
        summary = {k: results[k] for k in ("process", "model", "noise_sequence", "score_errors")}
        folder.write("finished", results=summary)
    say("")
    for file in ("explain.json", "coefficients.csv", "clocks.csv", *files):
        say(f"  {path / file}")
    return 0


def _subject(cfg) -> Subject:
    """From a checkpoint, from network=exact, or from sde and data alone.  Raises UsageError for what does not fit."""
    check_type(cfg.n, int, "n")  # null means all the items to nll, and nothing here
    if chosen("sde") == "one":
        raise UsageError("sde=one is one noise level, no process: there is no way from data to noise to explain")
    if cfg.ckpt is not None or typed("network="):
        model = load_model(cfg, torch.device("cpu"))
        refuse_source(model, "there is no noise on its way to explain", "diffcli sample trajectory=true draws the way")
        check_shape(model, model.data.shape, "the data")
        as_unconditional(model)
        return Subject(model.denoiser.sde, model.data, model.denoiser, model.source, model.config)
    if typed("prediction="):
        raise UsageError("prediction= is part of a trained model, and there is none here", "ckpt=PATH")
    with open_dict(cfg):
        cfg.network = cfg.prediction = None  # which an SDE or a data set prefers: there is none
    check_settings(plain(cfg), GROUPS)
    check_clock(cfg)
    data = build(plain(cfg.data), "data")
    measure(cfg, data)
    config = plain(cfg)
    return Subject(build(config["sde"], "sde"), data, None, None, config)


def _ladders(config: dict, sde: SDE) -> dict[str, torch.Tensor]:
    """The sequences of levels whose neighbours are compared: the training levels where there are any, and the grid's."""
    grid = build(config["grid"], "grid")
    try:
        steps = config["steps"] or grid.steps(sde) or DEFAULT_STEPS
        found = {f"grid of {steps} steps": grid(sde, steps)}
    except ValueError as error:
        raise UsageError(f"grid: {error}") from error
    return ({} if sde.times is None else {"training levels": sde.times}) | found


def _name(sde: SDE) -> str:
    schedule = getattr(sde, "schedule", None)
    return type(sde).__name__ + (f" on the schedule {type(schedule).__name__}" if schedule is not None else "")


def _figures(sde: SDE, sample: Sample, ladders: dict, name: str, path: Path) -> dict:
    """Compute, print and write all that is numbers."""
    rows, fine = torch.linspace(sde.t_min, sde.t_max, ROWS, dtype=torch.float64), fine_times(sde)
    table, readings = coefficients(sde, rows), clocks(sde, rows)
    qualities = {
        "near_data": near_data(sde, sample.moments, sample.scale),
        "near_prior": near_prior(sde, sample.moments),
        "neighbours": {which: neighbours(sde, times, sample.moments) for which, times in ladders.items()},
    }
    say(f"{name}\n")
    say(text_table(table))
    say(f"\nnoise sequence, on {sample.text}")
    for line in quality_lines(qualities, sample):
        say(line)
    say("\nthe same noise on the clocks of other programs, and the factors to their states (—: no such level there)")
    say(text_table(readings, CLOCKS))
    write_csv(path / "coefficients.csv", coefficients(sde, fine))
    write_csv(path / "clocks.csv", clocks(sde, fine))
    return {"coefficients": listed(table), "noise_sequence": qualities, "clocks": listed(readings)}
