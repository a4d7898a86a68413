"""`diffcli tune`: fit the times, and the weights, of few steps to one model, and keep them in its checkpoint."""

import csv
import io
import time
from pathlib import Path

import torch
from tqdm import tqdm

from diffcli.commands.build import build, check_type
from diffcli.commands.common import check_walk, chosen, pick_device, recorded
from diffcli.commands.conditions import conditions
from diffcli.commands.guidance import guide
from diffcli.commands.model import Model, check_process, load_model
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.tuned import Entry, entries
from diffcli.commands.tuned_store import Store
from diffcli.commands.walk import build_sampler
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.grid import Grid
from diffcli.diffusion.guidance import Conditioned
from diffcli.diffusion.samplers import Sampler
from diffcli.diffusion.tuning import Fit, fit
from diffcli.errors import UsageError
from diffcli.randomness import ItemNoise, key
from diffcli.writing import write_text

MOST = 100  # steps: with more, every sampler is near the end of the ODE
COLUMNS = ("steps", "before", "after", "share", "nfe", "seconds")
OF_FIT = ("what", "n", "held", "rounds", "seed", "weights", "dtype", "label", "vector")  # by what a fit is known again


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = load_model(cfg, device)
    config = model.config
    check_process(model)
    check_type(config["n"], int, "n")
    model.given = conditions(model)
    guide(model, device)
    sampler, grid = build_sampler(config["sampler"]), build(config["grid"], "grid")
    wanted = _wanted(config["steps"])
    _check(sampler, grid, wanted, model)
    store = Store(Path(config["ckpt"]))
    path = choose("tune", config)
    if cfg.dry_run:
        say(f"would fit {_words(config)} of {', '.join(map(str, wanted))} steps to {model.source}")
        return 0
    folder = create(path, "tune", config)
    with recorded(folder):
        rows, kept = [], entries(model)
        for steps in wanted:
            there = next((e for e in kept if _is_it(e, steps, model, config)), None)
            if there is not None:
                say(f"{steps} steps: there already, the error {_change(there)}")
                rows.append(_row(there, 0.0))
                continue
            begun = time.monotonic()
            entry = _fit(sampler, grid, steps, model, device)
            store.put(entry)
            rows.append(_row(entry, time.monotonic() - begun))
            write_text(path / "tune.csv", _table(rows))
            say(f"{steps} steps: the error {_change(entry)}, {rows[-1]['seconds']:.0f} s")
        write_text(path / "tune.csv", _table(rows))
        folder.write("finished", results={"fits": rows, "what": config["what"], "guidance": model.guidance or None})
    say(f"in {model.source}: diffcli sample {_use(config)} steps={wanted[-1]}")
    say(f"  {path / 'tune.csv'}")
    return 0


def _wanted(steps) -> list[int]:
    """The numbers of steps, each once, from the least.  Raises UsageError where there are none, or one is out of range."""
    found = sorted(set(steps)) if isinstance(steps, list) else [steps]
    if not found:
        raise UsageError("steps=[] names no number of steps", "'steps=[5,10,20]'")
    if found[0] < 1 or found[-1] > MOST:
        raise UsageError(f"steps must lie between 1 and {MOST}, got {found[0] if found[0] < 1 else found[-1]}")
    return found


def _check(sampler: Sampler, grid: Grid, wanted: list[int], model: Model) -> None:
    """Raise UsageError where the sampler, the grid and the model do not go together."""
    check_walk(model.denoiser, sampler.kind, "stop")
    try:
        sampler.setup(model.denoiser)
        for steps in wanted:
            grid(model.denoiser.sde, steps)
    except ValueError as error:
        raise UsageError(f"tune: {error}") from error
    if sampler.kind != "ode" or sampler.evaluations is None:
        raise UsageError("tune fits a sampler of the ODE that walks a grid", "sampler=abm|deis|dpmpp_2m|unipc")


def _fit(sampler: Sampler, grid: Grid, steps: int, model: Model, device: torch.device) -> Entry:
    """One fit.  Its starts are no sample's: their noise has a key of its own."""
    config, sde = model.config, model.denoiser.sde
    rows, dtype = range(config["n"] + config["held"]), getattr(torch, config["dtype"])
    noise = ItemNoise(key(config["seed"], "tune") % 2**63, rows, model.shape, dtype, device)
    x = sampler.begin(sde, noise) if model.starts is None else model.starts(rows).to(dtype).to(device)
    with tqdm(desc=f"tuning {steps} steps", unit="round", disable=None, leave=False) as bar:

        def progress(rounds):
            bar.reset(total=len(rounds) if hasattr(rounds, "__len__") else None)
            for i in rounds:
                yield i
                bar.update()

        def bound(rows: range) -> Denoiser:
            if model.given is None:
                return model.denoiser
            return Conditioned(model.denoiser, **model.given(rows, dtype, device))

        more = {} if config["rounds"] is None else {"rounds": config["rounds"]}
        try:
            found = fit(
                bound, sampler, grid, steps, x, held=config["held"], what=config["what"], progress=progress,
                batch=config["batch_size"], **more,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(f"tune: {error}") from error
    return _entry(found, steps, model)


def _entry(found: Fit, steps: int, model: Model) -> Entry:
    config, sde, tuned = model.config, model.denoiser.sde, found.tuned
    times = tuned.times.cpu()
    return Entry(
        name=chosen("sampler"),
        sampler=config["sampler"],
        grid=config["grid"],
        steps=steps,
        times=times,
        weights=None if tuned.weights is None else tuned.weights.cpu(),
        alpha=sde.alpha(times).cpu(),
        sigma=sde.sigma(times).cpu(),
        asked=model.guidance,
        fit={name: config[name] for name in OF_FIT},
        before=float(found.before),
        after=float(found.after),
        nfe=int(found.nfe),
    )


def _is_it(entry: Entry, steps: int, model: Model, config: dict) -> bool:
    """Whether a fit that is there is what this command would find again."""
    same = {name: config[name] for name in OF_FIT} == entry.fit and entry.asked == model.guidance
    begun = (entry.sampler, entry.grid, entry.steps) == (config["sampler"], config["grid"], steps)
    return same and begun and entry.fits(model.denoiser.sde)


def _row(entry: Entry, seconds: float) -> dict:
    share = entry.after / entry.before if entry.before else 1.0
    values = (entry.steps, entry.before, entry.after, round(share, 4), entry.nfe, round(seconds, 1))
    return dict(zip(COLUMNS, values, strict=True))


def _table(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _change(entry: Entry) -> str:
    return f"{entry.before:.3g} -> {entry.after:.3g} on {entry.fit['held']} held-out starts"


def _words(config: dict) -> str:
    return "times" if config["what"] == "times" else "times and weights"


def _use(config: dict) -> str:
    """The words by which sample takes what was fitted."""
    return "sampler=tuned" if config["what"] == "all" else f"sampler={chosen('sampler')} grid=tuned"
