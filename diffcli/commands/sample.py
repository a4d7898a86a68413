"""`diffcli sample`: draw samples, write them as an array and as pictures."""

import time
from pathlib import Path

import numpy as np
import torch

from diffcli.commands.common import pick_device, recorded
from diffcli.commands.conditions import conditions, words, write_told
from diffcli.commands.files import write_samples
from diffcli.commands.going_on import find_place
from diffcli.commands.guidance import guide
from diffcli.commands.inverse import inverse
from diffcli.commands.inverse_report import write_inverse
from diffcli.commands.model import Model, load_model, read_states
from diffcli.commands.pairs import write_pairs
from diffcli.commands.partial import Partial, Rows, chunks
from diffcli.commands.quick import quicken
from diffcli.commands.run_folder import say
from diffcli.commands.sample_forecast import forecast
from diffcli.commands.starts import take_inputs, write_translations
from diffcli.commands.trajectory import Trajectory, draw, watch
from diffcli.commands.usage import peak_memory
from diffcli.commands.walk import Walk, nfe_summary, nfe_text, plan_walk, stream
from diffcli.data.pictures import is_image, picture
from diffcli.errors import NumericalError, UsageError
from diffcli.sampling import padded

SHOWN = 400  # items in a grid, the rest are in samples.npy


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = load_model(cfg, device, shares=True)
    model.given = conditions(model)
    names = take_inputs(model)
    model.problem = inverse(model)
    guide(model, device)
    quicken(model.denoiser, model.config)
    walk = plan_walk(model.config, model)
    start = _start(model)
    if (cfg.devices or 1) > 1 and (cfg.trajectory or cfg.start is not None):
        raise UsageError(f"devices={cfg.devices} goes with neither trajectory=true nor start=", "devices=1")
    place = find_place("sample", model.config, walk.fit)
    path, n = place.path, model.config["n"]
    if place.finished:
        return 0
    if cfg.dry_run:
        steps = len(walk.times) - 1
        say(f"would draw {n} samples of shape {model.shape} in {steps} steps from {model.source}")

        def write(folder, x):
            _write(folder, x, model, cfg.png, names and names[: len(x)])

        for line in forecast(walk, model, device, write):
            say(line)
        return 0
    folder = place.create()
    with (
        recorded(folder),
        place.rows(n, padded(n, cfg.batch_size), "sample", keeps={"samples": "samples.npy"}) as rows,
    ):
        begun, cpu = time.monotonic(), time.process_time()
        trajectory = watch(model, walk.times, n) if cfg.trajectory else None
        _draw(rows, walk, model, device, start, trajectory)
        seconds = time.monotonic() - begun
        x, nfe = rows["samples"], rows["nfe"]
        _check_finite(x)
        if model.problem is not None:
            files, figures = write_inverse(path, x, model, cfg.png)
        else:
            files, figures = _write(path, x, model, cfg.png, names), {}
        more, told = write_told(path, model, n)
        files += more
        if trajectory is not None:
            files += draw(path, trajectory, walk.times, model)
        steps = len(walk.times) - 1 if walk.sampler.evaluations is not None else None
        results = {
            "n": n,
            "last": walk.last,
            "t_end": float(walk.sampler.end(walk.times)),
            "guidance": model.guidance or None,
            "sampling_seconds": round(seconds, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_memory": peak_memory(device),
            **told,
            **figures,
        }
        summary, evaluations = nfe_summary(nfe), nfe_text(nfe)
        rows.finish()
        folder.write("finished", steps=steps, nfe=summary, results=results)
        rows.remove()
    say(f"{n} samples, {evaluations} network evaluations each, {seconds:.1f} s, from {model.source}")
    for file in files:
        say(f"  {file}")
    return 0


def _start(model: Model) -> torch.Tensor | None:
    """x at t_max from an .npy file, where the user gave one; it sets n."""
    if model.config["start"] is None:
        return None
    x = read_states(Path(model.config["start"]).expanduser(), model, "start")
    model.config["n"] = len(x)
    return x


def _draw(
    rows: Partial, walk: Walk, model: Model, device, start: torch.Tensor | None, trajectory: Trajectory | None
) -> None:
    """Add the samples that are not there yet; a trajectory sees the first ones, once more where those are there."""
    looks = {}
    if trajectory is not None:
        looks = {"callback": trajectory.callback, "see": trajectory.see if is_image(model.shape) else None}
    if trajectory is not None and rows.rows:
        for _ in stream(walk, model, model.config | {"n": trajectory.n}, device, start=start, **looks):
            pass
        looks = {}
    for x, nfe in stream(walk, model, model.config, device, rows.rows, start, **looks):
        rows.append(samples=x, nfe=nfe)


def _check_finite(x: Rows) -> None:
    bad = sum(int((~np.isfinite(part)).reshape(len(part), -1).any(1).sum()) for part in chunks(x))
    if bad:
        raise NumericalError(f"{bad} of the samples are not finite")


def _write(path: Path, x: Rows, model: Model, png: bool, names: list[str] | None = None) -> list[Path]:
    if model.side is not None and model.config["start"] is None:
        return write_translations(path, x, model, png, names)
    if model.condition == "image":
        return write_pairs(path, x, model, png)
    files = write_samples(path, x, model, png)
    picture(x[:SHOWN], path / "grid.png", model.data, words(model))
    return [path / "grid.png", *files]
