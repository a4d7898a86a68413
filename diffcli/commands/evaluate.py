"""`diffcli evaluate`: draw samples and compare them with held-out data."""

import json
import time
from pathlib import Path

import numpy as np
import torch

from diffcli.commands.common import pick_device, recorded
from diffcli.commands.model import Model, check_shape, load_model
from diffcli.commands.run_folder import choose, create, say, write_text
from diffcli.commands.walk import draw_all, nfe_summary, nfe_text, plan_walk
from diffcli.data.pictures import image_grid, is_image
from diffcli.data.scatter import scatter
from diffcli.errors import NumericalError
from diffcli.metrics.two_sample import compare

ROWS, COLUMNS = 10, 8  # images of each kind in the picture


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = load_model(cfg, device)
    walk = plan_walk(model.config, model)
    items = model.data.split(cfg.split)
    check_shape(model, items[0][0].shape, "the data")
    path = choose("evaluate", model.config)
    if cfg.dry_run:
        say(f"would compare {cfg.n} samples from {model.source} with {len(items)} items of the {cfg.split} split")
        return 0
    real = items.__getitems__(range(len(items)))[0]
    folder = create(path, "evaluate", model.config)
    with recorded(folder):
        begun = time.monotonic()
        x, nfe = draw_all(walk, model, model.config, device)
        if not np.isfinite(x).all():
            raise NumericalError("some of the samples are not finite")
        held_out = model.data.held_out and cfg.split == "test"
        figures = compare(as_data(x, model), model.data.transform.encode(real).double(), cfg.seed)
        results = figures | {"n": len(x), "split": cfg.split, "held_out": held_out}
        write_text(path / "metrics.json", json.dumps(results, indent=2) + "\n")
        _picture(path / "comparison.png", x, real.numpy(), model)
        steps = len(walk.times) - 1 if walk.sampler.evaluations is not None else None
        results["evaluating_seconds"] = round(time.monotonic() - begun, 3)
        folder.write("finished", steps=steps, nfe=nfe_summary(nfe), results=results)
    for line in table(figures):
        say(line)
    if not held_out:
        say(f"note: the {cfg.split} split of this data set is not held out from training")
    say(f"{len(x)} samples, NFE {nfe_text(nfe)} each, from {model.source}")
    say(f"  {path / 'metrics.json'}\n  {path / 'comparison.png'} (samples left, data right)")
    return 0


def as_data(x: np.ndarray, model: Model) -> torch.Tensor:
    """Samples as they would be saved: on the data's levels, where it has any; back in model space, as the data are."""
    transform = model.data.transform
    x = torch.from_numpy(x).double()
    return transform.encode(x.round().clamp(0, transform.levels - 1) if transform.levels else x).double()


def table(figures: dict) -> list[str]:
    """Each metric with its scale: what two halves of the real data give at the same count."""
    rows = [("", "samples vs data", "two halves of the data")]
    for name, label in (("sliced_wasserstein", "sliced Wasserstein"), ("mmd2", "MMD^2 (unbiased)")):
        rows.append((label, f"{figures[name]:.5f}", f"{figures[f'{name}_halves']:.5f}"))
    lines = [f"{a:<20} {b:>16} {c:>24}" for a, b, c in rows]
    return [
        *lines,
        f"({figures['m']} items on each side; the right column is what perfect samples would give, lower is better)",
    ]


def _picture(path: Path, x: np.ndarray, real: np.ndarray, model: Model) -> None:
    """Samples on the left, data on the right."""
    if not is_image(model.shape):
        scatter({"samples": x[:5000], "data": real[:5000]}, path)
        return
    levels = model.data.transform.levels
    columns = min(COLUMNS, len(x), len(real))
    rows = min(ROWS, len(x) // columns, len(real) // columns)
    left, right = (a[: rows * columns].reshape(rows, columns, *model.shape) for a in (x, real))
    gap = np.full((rows, 1, *model.shape), 0.5 * (levels - 1 if levels else 0.0))
    sheet = np.concatenate([left, gap, right], axis=1).reshape(-1, *model.shape)
    image_grid(sheet, path, levels, columns=2 * columns + 1)
