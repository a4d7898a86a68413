"""What `diffcli tune` has fitted to a model, as its checkpoint keeps it, and what of it a sampler and a grid take."""

import hashlib
import sys
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffcli.commands.common import chosen, typed
from diffcli.commands.model import Model
from diffcli.diffusion.grid import Grid
from diffcli.diffusion.samplers import Sampler
from diffcli.diffusion.samplers.tuned import TunedSampler
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.tuning import TunedGrid
from diffcli.errors import UsageError

SAME = 1e-9  # two processes whose alpha and sigma differ by less, relatively, are the same one


@dataclass(frozen=True)
class Entry:
    """One fit of a model: times for `sampler`, called `name`, or with `weights` a walk of its own that began there on `grid`.

    alpha, sigma: of the process at these times, by which it is known again.  asked: the guidance, as a formula, empty without.
    fit: the settings of the fit; before, after: its error on starts that were held out; nfe: evaluations that it took.
    """

    name: str
    sampler: dict
    grid: dict
    steps: int
    times: Tensor
    weights: Tensor | None
    alpha: Tensor
    sigma: Tensor
    asked: str
    fit: dict
    before: float
    after: float
    nfe: int

    def plain(self) -> dict:
        """As a checkpoint holds it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def replaces(self, other: "Entry") -> bool:
        """Whether it answers the same question: of as many steps, the same process and guidance, and of times the same sampler."""
        kinds = [(e.steps, e.asked, None if e.weights is not None else e.sampler) for e in (self, other)]
        ends = [torch.stack((e.alpha, e.sigma))[:, [0, -1]] for e in (self, other)]
        return kinds[0] == kinds[1] and torch.allclose(*ends, rtol=SAME, atol=SAME)

    def fits(self, sde: SDE) -> bool:
        """Whether it was fitted on this process."""
        now = torch.stack((sde.alpha(self.times), sde.sigma(self.times))).cpu()
        return torch.allclose(torch.stack((self.alpha, self.sigma)), now, rtol=SAME, atol=SAME)


def entries(model: Model) -> list[Entry]:
    """All that the checkpoint of a model has."""
    return [Entry(**found) for found in model.tuned]


def with_tuned(sampler: Sampler, grid: Grid, config: dict, model: Model) -> tuple[Sampler, Grid]:
    """The sampler and the grid, given what was fitted where they are `sampler=tuned` or `grid=tuned`.

    Raises UsageError that says what there is, where nothing fits.
    """
    own = isinstance(sampler, TunedSampler)
    if isinstance(getattr(sampler, "predictor", None), TunedSampler):
        raise UsageError("sampler.predictor=tuned: what was tuned is a whole walk", "sampler.predictor=ancestral")
    if not own and not isinstance(grid, TunedGrid):
        return sampler, grid
    if own and typed("grid") and "samplers" not in config and not isinstance(grid, TunedGrid):
        raise UsageError("sampler=tuned walks times of its own, and grid= names others", "grid= left out")
    node = None if own else config["sampler"]
    name = chosen("sampler") if "samplers" not in config else _class(config["sampler"])
    found = usable(model, node, name)
    tables = {entry.steps: entry.times for entry in found}
    if not own:
        return sampler, TunedGrid(tables)
    return TunedSampler({entry.steps: (entry.times, entry.weights) for entry in found}), TunedGrid(tables)


def of_walk(sampler: Sampler, grid: Grid, times: Tensor) -> str:
    """A hex hash of the fit that is walked, which another may replace in the checkpoint; empty where there is none."""
    if not isinstance(grid, TunedGrid):
        return ""
    found = hashlib.sha256(times.numpy())
    if isinstance(sampler, TunedSampler):
        found.update(sampler.tables[len(times) - 1][1].contiguous().numpy())
    return found.hexdigest()


def usable(model: Model, node: dict | None, name: str) -> list[Entry]:
    """Of each number of steps the fit for the sampler of `node`, called `name`, or where that is None, with weights of its own.

    What was fitted for the guidance asked for goes before what was fitted without any.  Raises UsageError.
    """
    every, own = entries(model), node is None
    kind = [e for e in every if (e.weights is not None) == own and (own or _same(e.sampler, node))]
    if not kind:
        for_it = "" if own else f" for sampler={name} with these settings"
        rest = f"; there is {_listed(every)}" if every else ""
        how = "diffcli tune" + ("" if own else f" what=times sampler={name}")
        raise UsageError(f"{model.source} has not been tuned{for_it}{rest}", how)
    there = [e for e in kind if e.fits(model.denoiser.sde)]
    if not there:
        raise UsageError(
            f"{model.source} was tuned on another process than it is asked on here",
            "sde= and sde.t_min as they were then, or diffcli tune with those of now",
        )
    fitting = {e.steps: e for e in there if not e.asked} | {e.steps: e for e in there if e.asked == model.guidance}
    if not fitting:
        raise UsageError(
            f"{model.source} was tuned with other guidance: {there[0].asked}", "the same guidance, or diffcli tune"
        )
    if model.guidance and all(e.asked != model.guidance for e in fitting.values()):
        print("warning: what was tuned was tuned without this guidance", file=sys.stderr)
    return [fitting[steps] for steps in sorted(fitting)]


def most_there(grid: Grid, steps: int) -> int:
    """The most steps of a grid that do not exceed `steps`: a tuned one has some numbers of them alone; 0 for none."""
    if not isinstance(grid, TunedGrid):
        return steps
    return max((k for k in grid.tables if k <= steps), default=0)


def least_there(grid: Grid) -> int:
    """The fewest steps of a grid."""
    return min(grid.tables) if isinstance(grid, TunedGrid) else 1


def _same(kept: dict, node: dict) -> bool:
    """Whether a sampler is the one that was fitted; a setting that it did not have then has come later."""
    return all(node.get(key) == value for key, value in kept.items())


def _class(node: dict) -> str:
    return node["_target_"].rpartition(".")[2]


def _listed(found: list[Entry]) -> str:
    """What there is, as it is asked for."""
    kinds: dict[str, set[int]] = {}
    for entry in found:
        words = "sampler=tuned" if entry.weights is not None else f"sampler={entry.name} grid=tuned"
        kinds.setdefault(words, set()).add(entry.steps)
    return " and ".join(f"{words} steps={'|'.join(map(str, sorted(steps)))}" for words, steps in kinds.items())
