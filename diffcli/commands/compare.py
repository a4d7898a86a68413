"""`diffcli compare`: samplers side by side on one model, by their error and distance at each number of evaluations."""

import contextlib
import io
import time
from dataclasses import dataclass

import torch
from omegaconf import open_dict
from torch import Tensor
from tqdm import tqdm

from diffcli.commands import compare_cards
from diffcli.commands.build import build, check_type
from diffcli.commands.common import check_prior, chosen, pick_device, recorded, typed
from diffcli.commands.conditions import conditions
from diffcli.commands.evaluation import other_labels
from diffcli.commands.guidance import guide
from diffcli.commands.model import Model, check_process, check_shape, load_model
from diffcli.commands.options import changed, config_dir, load, words
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.tuned import most_there, with_tuned
from diffcli.commands.walk import Walk, build_sampler, plan_walk, within_floats
from diffcli.diffusion.samplers import RK45, Sampler, most_steps
from diffcli.errors import NumericalError, UsageError
from diffcli.explain.compare_plot import plot
from diffcli.explain.comparison import Cell, Comparison, write
from diffcli.metrics.features.base import on_levels
from diffcli.metrics.ruler import Ruler
from diffcli.sampling import draw_samples

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-6}  # of the reference
CHANGE = 5  # its error is about a tenth of what ten times the tolerance changes, and surely less than a fifth


@dataclass
class Entry:
    """One of the samplers as the user wrote it."""

    text: str
    sampler: Sampler
    node: dict
    grid: dict
    refused: str = ""  # why it does not go with the model


def run(cfg) -> int:
    if cfg.cards is not None:
        return compare_cards.run(cfg)
    device = pick_device(cfg.device)
    with open_dict(cfg):
        cfg.dtype = cfg.dtype or ("float64" if typed("network=") else "float32")
    model = load_model(cfg, device)
    config = model.config
    check_type(config["n"], int, "n")
    check_process(model)
    if model.denoiser.posterior_mean:
        check_prior(model.denoiser.sde)  # once for all
    model.given = conditions(model)
    guide(model, device)
    budgets = _budgets(config["nfe"])
    entries = _entries(config, model)
    items = model.data.split(config["split"])
    check_shape(model, items[0][0].shape, "the data")
    path = choose("compare", config)
    usable = [entry for entry in entries if not entry.refused]
    if not any(_walks(entry, budgets, config, model) for entry in usable):
        raise UsageError(f"nfe={budgets}: not one step of these samplers takes so few evaluations", "'nfe=[5,10,20]'")
    if cfg.dry_run:
        for entry in entries:
            say(f"{entry.text}: {entry.refused}" if entry.refused else entry.text)
        say(
            f"would draw {config['n']} samples from {model.source} with {len(usable)} of {len(entries)} samplers at NFE {budgets}"
        )
        return 0
    ruler = Ruler(
        model.data.transform.encode(items.__getitems__(range(len(items)))[0]).double(), config["n"], config["seed"]
    )
    folder = create(path, "compare", config)
    with recorded(folder):
        found = _measure(usable, budgets, model, ruler, device)
        found.refused = {entry.text: entry.refused for entry in entries if entry.refused}
        found.held_out = model.data.held_out and config["split"] == "test"
        found.title = f"{_name(model)}, n = {config['n']}"
        found.warnings = other_labels(model)
        text = write(found, path)
        plot(found, path / "compare.png")
        folder.write("finished", results=found.results() | {"guidance": model.guidance or None})
    say(text)
    say("")
    for file in ("compare.csv", "compare.md", "compare.png"):
        say(f"  {path / file}")
    return 0


def _name(model: Model) -> str:
    error, label = (model.config.get("network") or {}).get("error"), model.config["label"]
    found = model.source + (f" with an error of {error:g}" if error else "")
    found += f", label = {label}" if label is not None else ""
    return found + (
        f", guidance = {chosen('guidance')} {model.config['guidance'].get('scale', '')}" if model.guidance else ""
    )


def _budgets(nfe) -> list[int]:
    """The budgets, each once, from the least.  Raises UsageError where there are none, or one below 1."""
    nfe = sorted(set(nfe)) if isinstance(nfe, list) else [nfe]
    if not nfe:
        raise UsageError("nfe=[] names no number of evaluations", "'nfe=[5,10,20,50]'")
    if nfe[0] < 1:
        raise UsageError(f"nfe must be at least 1, got {nfe[0]}")
    if nfe[-1] > 10**6:
        raise UsageError(f"nfe must be at most 1000000, got {nfe[-1]}")
    return nfe


def _entries(config: dict, model: Model) -> list[Entry]:
    """The samplers as named.  UsageError for an unknown name or setting, and where none of them goes with the model."""
    texts = config["samplers"] if isinstance(config["samplers"], list) else [config["samplers"]]
    texts = [" ".join(text.split()) for text in texts]
    if not texts:
        raise UsageError("samplers=[] names no sampler", "'samplers=[ddim,dpmpp_2m,unipc]'")
    if twice := next((text for i, text in enumerate(texts) if text in texts[:i]), None):
        raise UsageError(f"samplers: {twice!r} is there twice")
    entries = [_entry(text, config) for text in texts]
    for entry in entries:
        try:
            _plan(entry, None, config, model)
        except UsageError as error:  # the sampler itself is fine: it does not go with this model
            entry.refused = error.message.removeprefix("sampler: ")
    if all(entry.refused for entry in entries):
        raise UsageError(f"{entries[0].text}: {entries[0].refused}")
    return entries


def _entry(text: str, config: dict) -> Entry:
    """`NAME key=value ... grid=NAME grid.key=value ...`."""
    name, settings = words(text, "samplers")
    grid = config["grid"]
    try:
        if "grid" in settings:
            grid = load("grid", str(settings.pop("grid")), config_dir())
        more = {key.removeprefix("grid."): settings.pop(key) for key in list(settings) if key.startswith("grid.")}
        grid = changed(grid, more, "its grid")
        node = changed(load("sampler", name, config_dir()), settings, f"sampler={name}")
        build(grid, "grid")
        return Entry(text, build_sampler(node), node, grid)
    except UsageError as error:
        where = "samplers" if not settings and error.message.startswith("no ") else f"samplers: {text}"
        raise UsageError(f"{where}: {error.message.removeprefix('sampler: ')}", error.hint) from error


def _plan(entry: Entry, steps: int | None, config: dict, model: Model) -> Walk:
    with contextlib.redirect_stderr(io.StringIO()):  # the prior's warning was given once
        return plan_walk(config | {"sampler": entry.node, "grid": entry.grid, "steps": steps, "nfe": None}, model)


def _walks(entry: Entry, budgets: list[int], config: dict, model: Model) -> dict[int | None, Walk]:
    """The walk at each budget in which a step fits; under None the one of a sampler that chooses its steps."""
    if entry.sampler.evaluations is None:
        return {None: _plan(entry, 1, config, model)}
    last = config["last"] or entry.sampler.last()
    _, grid = with_tuned(entry.sampler, build(entry.grid, "grid"), config | {"sampler": entry.node}, model)
    most = None if entry.sampler.one_level else grid.steps(model.denoiser.sde)
    calls = model.denoiser.calls
    fitting = {nfe: most_there(grid, most_steps(entry.sampler, nfe // calls - (last == "denoise"))) for nfe in budgets}
    return {nfe: _plan(entry, min(k, most or k), config, model) for nfe, k in fitting.items() if k >= 1}


def _measure(entries: list[Entry], budgets: list[int], model: Model, ruler: Ruler, device) -> Comparison:
    """Draw with every sampler at every budget, and measure."""
    config = model.config
    found = Comparison(budgets, ruler.halves, ruler.noise, ruler.m, min(config["n"], config["endpoints"]))
    found.samplers = {entry.text: entry.sampler.kind for entry in entries}
    walks = {entry.text: _walks(entry, budgets, config, model) for entry in entries}
    ends: dict[tuple, tuple[Tensor, float]] = {}
    with tqdm(total=sum(map(len, walks.values())), desc="comparing", unit="walk", disable=None, leave=False) as bar:
        for entry in entries:
            for budget, walk in walks[entry.text].items():
                cell, x = _draw(entry.text, budget, walk, model, device)
                found.cells.append(cell)
                bar.update()
                if x is None:
                    continue
                if walk.sampler.kind == "ode":
                    key = (walk.times[0].item(), walk.times[-1].item(), walk.last)
                    try:
                        ends[key] = ends.get(key) or _end(walk, model, device)
                        end, known = ends[key]
                        cell.error = _gap(x, end, walk, model)
                        found.known_to = max(found.known_to, known)
                    except NumericalError as error:
                        found.no_end = error.message
                distance = ruler(_as_saved(x, model))
                cell.sliced_wasserstein, cell.mmd2 = distance["sliced_wasserstein"], distance["mmd2"]
    found.judge(ruler)
    return found


def _sample(sampler, times, last, n: int, model: Model, device) -> tuple[Tensor, float]:
    """x (n, *S) in model space, and the mean number of evaluations."""
    config = model.config
    dtype, size = getattr(torch, config["dtype"]), config["batch_size"]
    given = {"last": last, "dtype": dtype, "device": device, "given": model.given, "start": model.starts}
    drawn = list(draw_samples(model.denoiser, sampler, times, model.shape, n, config["seed"], size, **given))
    return torch.cat([s.x.cpu() for s in drawn]), torch.cat([s.nfe.cpu() for s in drawn]).double().mean().item()


def _draw(text: str, budget: int | None, walk: Walk, model: Model, device) -> tuple[Cell, Tensor | None]:
    """The samples of one walk, None where there are none to measure, and what they took."""
    begun = time.monotonic()
    steps = None if budget is None else len(walk.times) - 1
    try:
        with within_floats():
            x, nfe = _sample(walk.sampler, walk.times, walk.last, model.config["n"], model, device)
    except NumericalError as error:
        return Cell(text, walk.sampler.kind, budget, steps, note=error.message), None
    cell = Cell(text, walk.sampler.kind, budget, steps, nfe, seconds=time.monotonic() - begun)
    if not torch.isfinite(x).all():
        cell.note = "some of the samples are not finite"
        return cell, None
    return cell, x


def _as_saved(x: Tensor, model: Model) -> Tensor:
    """Samples as they would be saved, on the data's levels where it has any, and back in model space, float64."""
    transform = model.data.transform
    return transform.encode(on_levels(transform.decode(x).double(), transform.levels))


def _end(walk: Walk, model: Model, device) -> tuple[Tensor, float]:
    """Where the PF-ODE ends from the same starts, in float64, and how far off that may be."""
    n, tol = min(model.config["n"], model.config["endpoints"]), TOLERANCE[getattr(torch, model.config["dtype"])]
    fine, coarse = (_sample(RK45(t), walk.times, walk.last, n, model, device)[0].double() for t in (tol, 10 * tol))
    return fine, _gap(coarse, fine, walk, model) / CHANGE


def _gap(x: Tensor, end: Tensor, walk: Walk, model: Model) -> float:
    """Median over items of `|x - end| / (alpha sqrt(d))`, alpha that of the last time, 1 for what was denoised."""
    alpha = model.denoiser.sde.alpha(walk.times[-1]).item() if walk.last == "stop" else 1.0
    gap = (x[: len(end)].double() - end).flatten(1)
    return (gap.norm(dim=1) / (alpha * gap.shape[1] ** 0.5)).median().item()
