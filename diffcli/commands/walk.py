"""What sample and evaluate have in common: a sampler, its grid, and how many steps fit."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffcli.commands.build import build, check_type
from diffcli.commands.common import check_walk, several
from diffcli.commands.model import Model, check_process
from diffcli.commands.options import filled
from diffcli.commands.partial import Rows, chunks
from diffcli.commands.tuned import least_there, most_there, of_walk, with_tuned
from diffcli.data.transform import Transform
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.grid import Grid
from diffcli.diffusion.samplers import Sampler, most_steps
from diffcli.diffusion.sde import SDE
from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.evaluation import Evaluations
from diffcli.sampling import Conditions, Starts, batches, draw_samples, padded
from diffcli.sharing import share

DEFAULT_STEPS = Sampler.usual_steps


@dataclass
class Walk:
    """A sampler on its grid; fit: what tells what it was given by diffcli tune from another fit, empty without."""

    sampler: Sampler
    times: Tensor
    last: str
    fit: str = ""


def build_sampler(node: dict) -> Sampler:
    """The sampler of a node; its predictor may be given by name.  Raises UsageError."""
    node = filled(node, predictor="sampler")
    predictor = node.get("predictor", {"_target_": None})
    if not isinstance(predictor, dict) or "_target_" not in predictor:
        raise UsageError(
            f"sampler.predictor must name a sampler, got {predictor}", "sampler.predictor=reverse_diffusion"
        )
    if "predictor" in predictor:
        raise UsageError(
            "sampler.predictor has a predictor of its own",
            "sampler.corrector_steps=2 for more correction"
            if "corrector_steps" in node
            else "sampler.predictor=ancestral",
        )
    return build(node, "sampler")


def plan_walk(config: dict, model: Model, usual: int | None = None) -> Walk:
    """Build the sampler and its times; usual: steps where none are asked for, by default the sampler's own.

    Raises UsageError where n, steps, nfe, grid and sampler do not go together.
    """
    check_type(config["n"], int, "n")  # null means all the items to nll, and nothing here
    sampler, grid = build_sampler(config["sampler"]), build(config["grid"], "grid")
    sampler, grid = with_tuned(sampler, grid, config, model)
    if not sampler.one_level:
        check_process(model, "sampler=langevin|mode, or ")
    last = config["last"] or sampler.last()
    steps = _steps(config, sampler, grid, last, model.denoiser.calls)
    check_walk(model.denoiser, sampler.kind, last)
    try:
        sampler.setup(model.denoiser)
    except ValueError as error:
        raise UsageError(f"sampler: {error}") from error
    try:
        times = _times(sampler, grid, model.denoiser.sde, steps, usual or sampler.usual_steps)
    except ValueError as error:
        raise UsageError(f"grid: {error}") from error
    doubt = sampler.warning(model.denoiser, times)
    if doubt and config.get("start") is None:
        print(f"warning: {doubt}", file=sys.stderr)
    return Walk(sampler, times, last, of_walk(sampler, grid, times))


def _times(sampler: Sampler, grid: Grid, sde: SDE, steps: int | None, usual: int) -> Tensor:
    """The grid's times; its last one again and again for a sampler that stays there."""
    if not sampler.one_level:
        return grid(sde, steps or grid.steps(sde) or usual)
    end = grid.ends(sde)[-1] if sde.is_process else torch.tensor(sde.t_min, dtype=torch.float64)
    return end.repeat((steps or usual) + 1)


def _steps(config: dict, sampler: Sampler, grid: Grid, last: str, calls: int) -> int | None:
    """The steps that steps= or nfe= asks for, None for the grid's own number; an evaluation takes `calls` of the network."""
    steps, nfe = config["steps"], config["nfe"]
    if steps is not None and nfe is not None:
        raise UsageError(f"steps={steps} and nfe={nfe} both fix the number of steps", "one of the two")
    if nfe is None:
        return steps
    if sampler.evaluations is None:
        raise UsageError("nfe= cannot be kept by a sampler that chooses its own steps", "sampler.tol=… instead")
    fitting = most_there(grid, most_steps(sampler, nfe // calls - (last == "denoise")))
    if fitting < 1:
        fewest = least_there(grid)
        least = calls * (sampler.cost(fewest) + (last == "denoise"))
        what = "one step of this sampler takes" if fewest == 1 else f"the {fewest} steps that were tuned take"
        raise UsageError(f"nfe={nfe} is too few: {what} {least}", f"nfe={least} or more")
    return fitting


@contextlib.contextmanager
def within_floats() -> Iterator[None]:
    """A coefficient of a sampler that is no float, as of eta=1e200, is a numerical failure: NumericalError."""
    try:
        yield
    except (OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "without overflow" not in str(error):  # torch's for a float32
            raise
        raise NumericalError("a coefficient of the sampler is too large for a float: one of its settings is") from error


@dataclass
class Drawing:
    """Draws the samples begin ... begin + count - 1 of a job (begin, count), in source units, with their evaluations."""

    walk: Walk
    denoiser: Denoiser
    transform: Transform
    shape: tuple[int, ...]
    seed: int
    batch_size: int
    of: int
    dtype: torch.dtype
    device: torch.device | str = "cpu"
    given: Conditions | None = None
    starts: Starts | None = None

    def to(self, device: torch.device) -> None:
        self.denoiser.to(device)
        self.device = device

    def __call__(self, job: tuple[int, int], **watching) -> tuple[np.ndarray, np.ndarray]:
        (found,) = self.batches(*job, **watching)
        return found

    def batches(self, first: int, n: int, start=None, **watching) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A batch at a time, from `start` where it is given; `watching` is what draw_samples takes to show its steps."""
        with within_floats():
            for batch in draw_samples(
                self.denoiser,
                self.walk.sampler,
                self.walk.times,
                self.shape,
                n,
                self.seed,
                self.batch_size,
                last=self.walk.last,
                first=first,
                of=self.of,
                dtype=self.dtype,
                device=self.device,
                given=self.given,
                start=self.starts if start is None else start,
                **watching,
            ):
                yield self.transform.decode(batch.x.cpu()).numpy(), batch.nfe.numpy()


def stream(
    walk: Walk, model: Model, config: dict, device: torch.device, done: int = 0, start=None, **watching
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples done ... n - 1 in source units, a batch (B, *S) float and its network evaluations (B,) at a time.

    done: whole batches that are there already.  start: x at t_max of all n.
    With devices=N as many processes share the batches, and the samples are the same.  The progress bar counts the steps of
    all batches; samples where the sampler chooses its own steps, or where processes share them.
    """
    dtype, n, size = getattr(torch, config["dtype"]), config["n"], config["batch_size"]
    seed, transform = config["seed"], model.data.transform
    drawing = Drawing(
        walk, model.denoiser, transform, model.shape, seed, size, n, dtype, device, model.given, model.starts
    )
    if done == n:
        return
    jobs = [(items.start, min(len(items), n - items.start)) for items in batches(n - done, size, done, n)]
    devices = several(config["devices"], device)[: len(jobs)]
    by_sample = walk.sampler.evaluations is None or len(devices) > 1
    steps, before = len(walk.times) - 1, done // padded(n, size)
    total, unit = (n, "sample") if by_sample else ((before + len(jobs)) * steps, "step")
    desc = "sampling" if before + len(jobs) == 1 else f"sampling in {before + len(jobs)} batches"
    initial = done if by_sample else before * steps
    with tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=None, leave=False) as bar:

        def progress(steps):
            for i in steps:
                yield i
                bar.update(not by_sample)

        alone = len(devices) < 2
        if alone:
            rest = None if start is None else start[done:]
            found = drawing.batches(done, n - done, rest, progress=progress, **watching)
        else:
            found = share(drawing, jobs, devices)
        with contextlib.closing(found):
            for x, nfe in found:
                bar.update(by_sample * len(x))
                yield x, nfe


def nfe_summary(nfe: np.ndarray | Rows) -> dict[str, float]:
    """Mean, min and max of the evaluations an item took."""
    found = Evaluations()
    for part in chunks(nfe):
        found.add(part)
    return found.summary()


def nfe_text(nfe: np.ndarray | Rows) -> str:
    """The same in words: one number where every item took as many."""
    found = nfe_summary(nfe)
    least, most = found["min"], found["max"]
    return f"{least}" if least == most else f"{found['mean']:.1f} (from {least} to {most})"
