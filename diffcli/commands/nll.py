"""`diffcli nll`: log-likelihood of data under the probability-flow ODE of a model."""

import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffcli.commands.build import build
from diffcli.commands.common import pick_device, recorded
from diffcli.commands.model import Model, check_process, check_shape, load_model
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.walk import nfe_summary, nfe_text
from diffcli.data.pictures import is_image, picture
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise
from diffcli.sampling import batches

EXTREMES = 32  # most and least likely items in the picture, each


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = load_model(cfg, device)
    likelihood = build(model.config["likelihood"], "likelihood")
    if likelihood.needs_process:
        check_process(model, "likelihood=path, or ")
    items = model.data.split(cfg.split)
    n = min(cfg.n or len(items), len(items))
    check_shape(model, items[0][0].shape, "the data")
    path = choose("nll", model.config)
    if cfg.dry_run:
        say(f"would measure {n} items of the {cfg.split} split under {model.source}")
        return 0
    folder = create(path, "nll", model.config)
    with recorded(folder):
        begun = time.monotonic()
        log_prob, std_err, nfe = measure(model, items, n, likelihood, device)
        results = summary(model, log_prob, std_err)
        _write_csv(path / "nll.csv", log_prob, std_err)
        files = [path / "nll.csv"]
        if is_image(model.shape):
            order = np.argsort(-log_prob, kind="stable")
            chosen = np.concatenate([order[:EXTREMES], order[max(EXTREMES, n - EXTREMES) :]])
            picture(items.__getitems__(chosen.tolist())[0].numpy(), path / "grid.png", model.data)
            files.append(path / "grid.png")
        folder.write(
            "finished",
            nfe=nfe_summary(nfe),
            results=results | {"measuring_seconds": round(time.monotonic() - begun, 3)},
        )
    _report(results, model, nfe, cfg.split)
    for file in files:
        note = " (most likely first, least likely last)" if file.suffix == ".png" else ""
        say(f"  {file}{note}")
    return 0


def measure(model: Model, items, n: int, likelihood, device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p in nats of the first n items in source units, its standard error, and the evaluations of each, (n,) each.

    log p(x) = log p(y) + log |dy/dx| for the model-space value y of a (dequantised) item x.
    """
    config, transform = model.config, model.data.transform
    dtype = getattr(torch, config["dtype"])
    offset = math.prod(model.shape) * transform.log_jacobian
    columns = ([], [], [])
    with tqdm(total=n, desc="likelihood", unit="item", disable=None, leave=False) as bar:
        for batch in batches(n, config["batch_size"]):
            keep = min(len(batch), n - batch.start)
            x, _ = items.__getitems__([min(i, n - 1) for i in batch])
            noise = ItemNoise(config["seed"], batch, model.shape, torch.float64)
            u = noise.uniform("dequantize") if transform.levels and config["dequantize"] == "uniform" else None
            y = transform.encode(x.double(), u).to(dtype).to(device)
            found = likelihood(model.denoiser, y, noise)
            for column, value in zip(columns, (found.log_prob + offset, found.std_err, found.nfe), strict=True):
                column.append(value[:keep].cpu().numpy())
            bar.update(keep)
    log_prob, std_err, nfe = (np.concatenate(c) for c in columns)
    if not np.isfinite(log_prob).all():
        raise NumericalError(
            f"the log-likelihood of item {int(np.flatnonzero(~np.isfinite(log_prob))[0])} is not finite"
        )
    return log_prob, std_err, nfe


def summary(model: Model, log_prob: np.ndarray, std_err: np.ndarray) -> dict:
    """Mean and standard error over the items, in nats, and in bits/dim for data with levels."""
    n, d = len(log_prob), math.prod(model.shape)
    se = float(log_prob.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    found = {
        "n": n,
        "dimensions": d,
        "log_prob_mean": float(log_prob.mean()),
        "log_prob_standard_error": se,
        "nats_per_dim": float(-log_prob.mean() / d),
        "divergence_std_err_mean": float(std_err.mean()) if np.isfinite(std_err).all() else None,
    }
    if model.data.transform.levels:
        scale = d * math.log(2)
        found |= {
            "bits_per_dim": float(-log_prob.mean() / scale),
            "bits_per_dim_standard_error": None if se is None else se / scale,
        }
    return found


def _report(results: dict, model: Model, nfe: np.ndarray, split: str) -> None:
    def pm(mean: str, error: str) -> str:
        return f"{results[mean]:.4f}" + (
            f" ± {results[error]:.4f}" if results[error] is not None else " (one item: no standard error)"
        )

    if "bits_per_dim" in results:
        dequantized = model.config["dequantize"]
        say(f"bits/dim  {pm('bits_per_dim', 'bits_per_dim_standard_error')}  (dequantize={dequantized})")
    say(f"log p     {pm('log_prob_mean', 'log_prob_standard_error')} nats an item, in {model.data.units}")
    if results["divergence_std_err_mean"] is None:
        say("          one probe gives no error of the divergence estimate (likelihood.probes=2 or more does)")
    elif results["divergence_std_err_mean"] > 0:
        say(
            f"          of which the divergence estimate leaves ± {results['divergence_std_err_mean']:.4f} nats an item"
        )
    say(f"NFE       {nfe_text(nfe)} an item; {results['n']} items of the {split} split, model {model.source}")


def _write_csv(path: Path, log_prob: np.ndarray, std_err: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "log_prob", "std_err"])
        for i, row in enumerate(zip(log_prob.tolist(), std_err.tolist(), strict=True)):
            writer.writerow([i, repr(row[0]), "" if math.isnan(row[1]) else repr(row[1])])
