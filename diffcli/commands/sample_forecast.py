"""What `dry_run=true` says of sampling: the time and the memory that it will take, from a few steps that were measured."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from diffcli.commands.common import several
from diffcli.commands.model import Model
from diffcli.commands.usage import duration, peak_memory, scratch, volume
from diffcli.commands.walk import Drawing, Walk
from diffcli.diffusion.guidance import Wrapper
from diffcli.diffusion.samplers import FixedGrid
from diffcli.errors import NumericalError
from diffcli.sampling import PADDING, padded
from diffcli.sharing import share

WINDOW = 3.0  # seconds of steps that are measured, where they are short
FIRST = 10.0  # seconds for which the first batch is drawn whole, of a sampler that chooses its steps
WRITTEN = 400  # samples that are written for the measurement, at most


class Few:
    """A walk's progress that takes some of its steps: what they cost is what is asked, not where they lead."""

    def __init__(self, chosen: Collection[int]):
        self.chosen = frozenset(chosen)

    def __call__(self, steps: Iterable[int]) -> Iterable[int]:
        return [i for i in steps if i in self.chosen]


@dataclass
class Shortened:
    """A task of `share`: batches of which only some steps are taken."""

    drawing: Drawing
    few: Few

    def to(self, device: torch.device) -> None:
        self.drawing.to(device)

    def __call__(self, job: tuple[int, int]):
        return self.drawing(job, progress=self.few)


@dataclass
class Measured:
    """Seconds, by the clock and of CPU time, of what comes once and of each round of batches, one a device."""

    once: float
    a_round: float
    cpu_once: float
    cpu_round: float
    notes: tuple[str, ...] = ()


def forecast(walk: Walk, model: Model, device: torch.device, write: Callable[[Path, np.ndarray], object]) -> list[str]:
    """Draw a few steps of a batch, or of one a device, write it in a folder that is removed, and say what all will take."""
    config, n = model.config, model.config["n"]
    size = padded(n, config["batch_size"])
    count = -(-n // size)
    devices = several(config["devices"], device)[:count]
    dtype = getattr(torch, config["dtype"])
    of, where = 2 * size * len(devices), (model.shape, config["seed"], size)
    drawing = Drawing(walk, model.denoiser, model.data.transform, *where, of, dtype, device, model.given, model.starts)
    try:
        found, x = (_adaptive if walk.sampler.evaluations is None else _fixed)(walk, drawing, size, devices)
    except NumericalError as error:
        return [f"not predicted: {error.message}"]
    writing = (0.0, 0.0) if model.problem is not None else _written(write, x, n)
    rounds = -(-count // len(devices))
    total = found.once + rounds * found.a_round + writing[0]
    cpu = found.cpu_once + rounds * found.cpu_round + writing[1]
    many = len(devices) > 1
    batches = f"{count:,} batches of {size}" if count > 1 else f"a batch of {size}"
    left = [
        w for w, there in (("trajectory=true", config["trajectory"]), ("task=", model.problem is not None)) if there
    ]
    memory = f"{'allocated on the GPU' if device.type == 'cuda' else 'resident'} at its peak"
    return [
        f"measured: {batches} take{'s' * (count == 1)} {duration(found.a_round)}{' each' * (count > 1)}"
        + (f", {len(devices)} at a time on as many devices" if many else ""),
        f"predicted: {duration(total)}" + ("" if many else f"; {duration(cpu)} of CPU time"),
        f"  start {duration(found.once)}, sampling {duration(rounds * found.a_round)}, writing {duration(writing[0])}",
        *(f"  {note}" for note in found.notes),
        *(f"  without what {word} draws and writes" for word in left),
        f"predicted: {volume(peak_memory(device))} of memory, {memory}"
        + (f" in each of {len(devices)} processes" * many),
    ]


def share_of(sampler: FixedGrid, steps: int, m: int, last: str) -> tuple[Few, float]:
    """m of the steps, and how many times as many evaluations all of them take.

    They are spread over all times, which need not cost the same under guidance; of a sampler that remembers, the first ones.
    """
    apart = 1 if sampler.memory else (steps - 1) / max(1, m - 1)
    chosen = {round(k * apart) for k in range(m)}
    costs = (sampler.cost(i + 1) - (sampler.cost(i) if i else 0) for i in chosen)
    ends = last == "denoise"
    return Few(chosen), (sampler.cost(steps) + ends) / (sum(costs) + ends)


def _fixed(walk: Walk, drawing: Drawing, size: int, devices: list[torch.device]) -> tuple[Measured, np.ndarray]:
    """By a few steps, evenly spread, of which it is known how many evaluations they take."""
    sampler, steps = walk.sampler, len(walk.times) - 1
    one, _ = share_of(sampler, steps, 1, walk.last)
    warm, again = (_timed(lambda: drawing((0, size), progress=one)) for _ in range(2))
    m = min(steps, max(2, int(WINDOW / max(again[0], 1e-9))))
    if sampler.memory and isinstance(drawing.denoiser, Wrapper):
        m = steps  # whose guidance may be for some times alone
    some, ratio = share_of(sampler, steps, m, walk.last)
    if len(devices) == 1:
        wall, cpu, (x, _) = _timed(lambda: drawing((0, size), progress=some))
        surplus = max(0.0, warm[0] - again[0]), max(0.0, warm[1] - again[1])
        return Measured(surplus[0], ratio * wall, surplus[1], ratio * cpu), x
    jobs = [(k * size, size) for k in range(2 * len(devices))]
    begun, at = time.monotonic(), []
    with contextlib.closing(share(Shortened(drawing, some), jobs, devices)) as results:
        for _ in results:
            at.append(time.monotonic() - begun)
    started, ended = at[len(devices) - 1], at[-1]
    a_round = ended - started
    return Measured(max(0.0, started - a_round), ratio * a_round, 0.0, 0.0), again[2][0]


def _adaptive(walk: Walk, drawing: Drawing, size: int, devices: list[torch.device]) -> tuple[Measured, np.ndarray]:
    """By the whole walk of the first PADDING samples, or of the first batch where that is short."""
    small = replace(drawing, batch_size=PADDING, of=PADDING)
    wall, cpu, (x, nfe) = _timed(lambda: small((0, PADDING)))
    n, ratio = PADDING, size / PADDING
    if size > PADDING and wall * ratio < FIRST:
        wall, cpu, (x, nfe) = _timed(lambda: drawing((0, size)))
        n, ratio = size, 1.0
    who = f"the sampler chooses its own steps: {n} samples took from {nfe.min()} to {nfe.max()} evaluations, others may take more"
    notes = (who,) if len(devices) == 1 else (who, "as if each process were as fast as this one alone")
    return Measured(0.0, ratio * wall, 0.0, ratio * cpu, notes), x


def _timed(do: Callable[[], object]) -> tuple[float, float, object]:
    begun = time.monotonic(), time.process_time()
    found = do()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.monotonic() - begun[0], time.process_time() - begun[1], found


def _written(write: Callable[[Path, np.ndarray], object], x: np.ndarray, n: int) -> tuple[float, float]:
    """Seconds, by the clock and of CPU time, to write n samples: the first WRITTEN, and what each of as many more adds."""
    took = []
    for rows in [n] if n <= WRITTEN else [WRITTEN, WRITTEN, 2 * WRITTEN]:
        with scratch(Path("x")) as folder:
            took.append(_timed(lambda rows=rows: write(folder, np.resize(x, (rows, *x.shape[1:]))))[:2])
    first, less, more = took[0], took[-2:][0], took[-1]
    wall, cpu = (a + max(0.0, c - b) * (n / WRITTEN - 1) for a, b, c in zip(first, less, more, strict=True))
    return wall, cpu
