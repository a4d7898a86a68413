"""What `dry_run=true` says of a training: the time and the memory that it will take, from a few steps that were measured."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffcli.commands.settings import seconds
from diffcli.commands.usage import duration, peak_memory, volume

if TYPE_CHECKING:  # it imports Lightning
    from diffcli.training.trial import Lap, Trial


@dataclass(frozen=True)
class Part:
    """A part of a training: how often it comes, the time of the first one, and of each one after it."""

    name: str
    times: int
    first: "Lap"
    again: "Lap"

    @property
    def all(self) -> "Lap":
        return 0 * self.first if self.times < 1 else self.first + (self.times - 1) * self.again


def parts_of(config: dict, trial: "Trial") -> list[Part]:
    """The parts of the whole training, by what the trial has measured."""
    laps, trainer = trial.laps, config["trainer"]
    batches, total = trainer["accumulate_grad_batches"], trainer["max_steps"]

    def due(every: int, each: int = 1) -> int:
        return each * total // every - each * trial.first // every

    def part(name: str, times: int) -> Part:
        found = laps.get(name)
        return Part(
            name, times if found else 0, found[0] if found else laps["end"][0], found[-1] if found else laps["end"][0]
        )

    steps, every = total - trial.first, config["checkpoint"]["every"]
    shown = config["preview"]["every"] if "preview" in config else 0  # a classifier has none
    found = [
        Part("start", 1, laps["start"][0], laps["start"][0]),
        Part("step", steps - 1, laps["step"][0], laps["step"][0]),
        part("validation", due(trainer["val_check_interval"], batches)),
        part("preview", due(shown) + (total % shown > 0) if shown else 0),
        part("end", 1),
    ]
    return [*found, part("checkpoint", _saved(config, due(every), total, sum(p.all.wall for p in found)))]


def _saved(config: dict, due: int, total: int, wall: float) -> int:
    """Checkpoints written by number of steps and by the clock: each time a numbered one and the last; at the end the last."""
    every, keep, minutes = (config["checkpoint"][name] for name in ("every", "keep", "minutes"))
    a_save = 1 + (keep > 0)
    by_clock = 0 if not minutes else max(0, int(wall / (60 * minutes)) - due)
    return a_save * (due + by_clock) + (total % every > 0)


def forecast(config: dict, trial: "Trial", trainer) -> list[str]:
    """The lines that tell of it."""
    from diffcli.training.trial import Lap

    parts = parts_of(config, trial)
    total = sum((part.all for part in parts), Lap())
    step = trial.laps["step"][0].wall
    size = config["batch_size"] * trainer.world_size * config["trainer"]["accumulate_grad_batches"]
    limit = seconds(config["trainer"]["max_time"])
    shares = [f"{count(part)} {duration(part.all.wall)}" for part in parts if part.times > 0]
    memory, kept = peak_memory(trainer.strategy.root_device), 2 + config["checkpoint"]["keep"]
    where = "allocated on the GPU" if trainer.strategy.root_device.type == "cuda" else "resident"
    many = f" in each of {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return [
        f"measured: a step of {size:,} items takes {duration(step)} ({size / step:,.0f} samples/s)",
        f"predicted: {duration(total.wall)}; {duration(total.cpu)} of CPU time{' a process' if many else ''}",
        f"  {', '.join(shares)}",
        *([f"  trainer.max_time ends it after {duration(limit)}"] if limit is not None and limit < total.wall else []),
        f"predicted: {volume(memory)} of memory, {where} at its peak{many}; {volume(kept * trial.saved)} of checkpoints",
    ]


def count(part: Part) -> str:
    """How often it comes, in words."""
    if part.name in ("start", "end"):
        return part.name
    times, name = (part.times + 1, "step") if part.name == "step" else (part.times, part.name)
    return f"{times:,} {name}{'s' * (times > 1)}"
