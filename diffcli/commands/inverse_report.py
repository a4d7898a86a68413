"""What the samples of an inverse problem come to: how well they fit the measurement, and the original where it is known."""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.commands.files import write_samples
from diffcli.commands.inverse import Problem
from diffcli.commands.model import Model
from diffcli.commands.partial import CHUNK, Rows, chunks
from diffcli.commands.run_folder import say
from diffcli.data.pictures import is_image
from diffcli.data.transform import Transform
from diffcli.errors import UsageError
from diffcli.explain.inverse_picture import INPUTS, inverse_pictures, inverse_points
from diffcli.metrics.taken import CLIPPED, off_range
from diffcli.writing import whole

BEHIND = 1000  # data points behind those of a task


def write_inverse(path: Path, x: np.ndarray | Rows, model: Model, png: bool) -> tuple[list[Path], dict]:
    """Write samples.npy, measured.npy and inverse.png of samples x (N each, *S) in source units; the files, and the figures."""
    problem, transform = model.problem, model.data.transform
    figures = measure(problem, x, transform)
    for line in told(figures):
        say(line)
    off = sum(off_range(torch.from_numpy(part), transform.levels) for part in chunks(x)) / math.prod(x.shape)
    if off > CLIPPED:
        print(
            f"warning: {off:.0%} of the values lie far outside the levels 0..{transform.levels - 1}: more steps, more training, or "
            "another guidance.method may help",
            file=sys.stderr,
        )
    measured = problem.transform.decode(problem.y).numpy()
    files = [path / "inverse.png", *write_samples(path, x, model, png), path / "measured.npy"]
    with whole(files[-1]) as file:
        np.save(file, measured)
    rows = x[: INPUTS * problem.each].reshape(-1, problem.each, *x.shape[1:])
    original = None if problem.original is None else transform.decode(problem.original).numpy()
    known = None if problem.operator.known is None else problem.operator.known.cpu().numpy()
    if is_image(model.shape):
        inverse_pictures(rows, original, measured, known, files[0], transform.levels)
    else:
        inverse_points(rows, original, measured, known, files[0], _behind(model))
    return files, figures


def _behind(model: Model) -> np.ndarray | None:
    """Some of the data; a sample needs none, so that their files may be gone."""
    try:
        items = model.data.split("test")
    except UsageError:
        return None
    x = items.__getitems__(range(min(len(items), BEHIND)))[0].numpy()
    return x if x.shape[1:] == model.shape else None


def measure(problem: Problem, x: np.ndarray | Rows, transform: Transform) -> dict:
    """The figures of samples x (N each, *S) in source units, of which a few inputs' are looked at at a time.

    fidelity: r.m.s. of A(x) - y over the values of y, mean and sd over the samples, in `unit`: the noise's standard deviation, or
    without noise a level of the data, or model space.  original: the same of the true items, whose noise alone it is.
    psnr_of_mean: `10 log10(4 / mse)` dB of each input's mean, pictures only; rmse_of_mean: its error in model space.
    """
    operator, each = problem.operator.cpu(), problem.each
    unit, one = _unit(problem.noise, transform.levels)
    misfits, mse, inputs = [], [], max(1, CHUNK // each)
    for first in range(0, len(problem.y), inputs):
        y = problem.y[first : first + inputs]
        part = transform.encode(torch.from_numpy(x[first * each : (first + len(y)) * each])).double()
        misfits.append(_rms(operator, part, y.repeat_interleave(each, 0)) / one)
        if problem.original is not None:
            mean = part.view(-1, each, *part.shape[1:]).mean(1)
            mse.append((mean - problem.original[first : first + inputs]).square().flatten(1).mean(1))
    misfit = torch.cat(misfits)
    found = {
        "task": problem.name,
        "inputs": len(problem.y),
        "each": problem.each,
        "fidelity": {
            "unit": unit,
            "mean": misfit.mean().item(),
            "sd": misfit.std().item() if len(misfit) > 1 else None,
        },
    }
    if problem.original is None:
        return found
    found["fidelity"]["original"] = (_rms(operator, problem.original, problem.y) / one).mean().item()
    found["rmse_of_mean"] = torch.cat(mse).mean().sqrt().item()
    if transform.levels is not None:
        found["psnr_of_mean"] = [10 * math.log10(4 / max(m, 1e-30)) for m in torch.cat(mse).tolist()]
    return found


def _unit(noise: float, levels: int | None) -> tuple[str, float]:
    if noise:
        return "noise", noise
    return ("levels", 2 / levels) if levels is not None else ("model space", 1.0)


def _rms(operator, x: Tensor, y: Tensor) -> Tensor:
    """Of each item over the values that y has, (B,)."""
    values = math.prod(y.shape[1:]) if operator.known is None else int(operator.known.sum())
    with torch.no_grad():
        return (operator.residual(y, x).flatten(1).square().sum(1) / values).sqrt()


def told(figures: dict) -> list[str]:
    """The figures in words."""
    fit = figures["fidelity"]
    unit = {"noise": "of the noise's sd", "levels": "levels", "model space": "in model space"}[fit["unit"]]
    spread = "" if fit["sd"] is None else f" ± {fit['sd']:.3g}"
    beside = f"; of the originals {fit['original']:.3g}" if "original" in fit else ""
    lines = [f"data fidelity, r.m.s. of A(x) - y: {fit['mean']:.3g}{spread} {unit}{beside}"]
    if "psnr_of_mean" in figures:
        psnr = figures["psnr_of_mean"]
        lines.append(f"PSNR of the mean of {figures['each']}: {sum(psnr) / len(psnr):.1f} dB")
    elif "rmse_of_mean" in figures:
        lines.append(f"r.m.s. error of the mean of {figures['each']}: {figures['rmse_of_mean']:.3g}")
    return lines
