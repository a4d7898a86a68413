"""What every sampler is, and the one loop over a fixed grid."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, Rows
from diffcli.diffusion.endings import Ended, bad_rows, fine, first_row
from diffcli.diffusion.sde import SDE
from diffcli.diffusion.watched import Watched, unwatched

LOOK = 16  # steps between two looks at whether x is still finite: each waits for the device once


@dataclass(frozen=True)
class Plan:
    """The coefficients at the times of a grid, computed once in float64: Python floats, so that a step never waits for a device."""

    t: list[Tensor]  # 0-dimensional, what the denoiser is called with
    alpha: list[float]
    sigma: list[float]
    lam: list[float]

    @classmethod
    def at(cls, sde: SDE, times: Tensor, **more):
        """The plan at these times; a subclass takes its own columns by name."""
        return cls(list(times), sde.alpha(times).tolist(), sde.sigma(times).tolist(), sde.lam(times).tolist(), **more)


class Samples(NamedTuple):
    """x (B, *S) in model space, and network evaluations of each item (B,)."""

    x: Tensor
    nfe: Tensor


def straight(steps: Iterable[int]) -> Iterable[int]:
    """The progress that nobody watches."""
    return steps


class Sampler(ABC):
    """Takes a denoiser with its conditions bound, x at times[0], decreasing times and noise, to x at times[-1].

    kind: ode (no noise), sde (follows the marginals with noise), score (asks the score alone: Langevin, ascent).
    order: of its global error on `grid=uniform_lam` (ode: strong, sde: weak); None for `score`.
    declared_for: the setting that its order is declared for where another was given; empty: the order is this one's.
    clock: what it steps in, lam or t; one that steps in t has no order on a table, whose lam(t) has kinks.
    evaluations: of the denoiser a step; None if it chooses its steps itself.
    both_ways: whether an ODE's also takes increasing times, from data to noise.
    one_level: whether it stays at one noise level, so that it needs no process; usual_steps: how many unless told.
    """

    kind: ClassVar[Literal["ode", "sde", "score"]]
    order: ClassVar[int | None]
    evaluations: ClassVar[int | None]
    clock: ClassVar[Literal["lam", "t"]] = "lam"
    declared_for: str = ""
    needs: ClassVar[str] = ""  # which SDEs or models it is for, in words; empty: all
    both_ways: ClassVar[bool] = True
    one_level: ClassVar[bool] = False
    usual_steps: ClassVar[int] = 20

    def setup(self, denoiser: Denoiser) -> None:  # noqa: B027 - most have nothing to check
        """Called once, before any work.  Raises ValueError where the sampler does not go with the model."""

    def warning(self, denoiser: Denoiser, times: Tensor) -> str:
        """A sentence for the user where the walk along these times would run and mean little; empty where it does not."""
        return ""

    def cost(self, steps: int) -> int | None:
        """Evaluations of the denoiser that a walk of so many steps takes, apart from last=denoise; None if it chooses its steps."""
        return None if self.evaluations is None else self.evaluations * steps

    @abstractmethod
    def walk(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        noise,
        callback: Callable[[int, Tensor], None] | None = None,
        progress: Callable[[Iterable[int]], Iterable[int]] = straight,
    ) -> Samples:
        """The whole walk; callback(i, x) is called with x at times[i] for i = 1 ... steps, progress wraps the steps."""

    def begin(self, sde: SDE, noise) -> Tensor:
        """x at times[0] where the caller gives none: the prior's."""
        return sde.sample_prior(noise(0))

    def end(self, times: Tensor) -> Tensor:
        """The time at which it leaves x."""
        return times[-1]

    def last(self) -> str:
        """What its last step does unless it is told: stop at times[-1] (ode), or return x0_hat."""
        return "stop" if self.kind == "ode" else "denoise"


class FixedGrid(Sampler):
    """A sampler whose steps are those of the grid; it writes `step`, and remembers `memory` things between steps."""

    memory: int = 0
    _last: tuple[SDE, Tensor, Plan] | None = None  # many batches walk along one grid

    def _planned(self, sde: SDE, times: Tensor) -> Plan:
        learns = next(sde.parameters(), None) is not None
        if learns or self._last is None or self._last[0] is not sde or not torch.equal(self._last[1], times):
            self._last = sde, times.clone(), self.plan(sde, times)
        return self._last[2]

    def plan(self, sde: SDE, times: Tensor) -> Plan:
        return Plan.at(sde, times)

    @abstractmethod
    def step(self, denoiser: Denoiser, xt: Tensor, i: int, plan: Plan, history: deque, noise) -> Tensor:
        """From x at t = times[i] to x at s = times[i + 1]; `noise(i + 1)` is its standard normal noise.

        What it leaves in `history` (newest left, the oldest falls out) is there in the next step.
        """

    def walk(self, denoiser, x, times, noise, callback=None, progress=straight):
        plan, history, rows, start, i = self._planned(denoiser.sde, times), self._history(), Rows(denoiser), x, -1
        for i in progress(range(len(times) - 1)):
            x = self.step(denoiser, x, i, plan, history, noise)
            if callback is not None:
                callback(i + 1, x)
            if (i + 1) % LOOK == 0 and not fine(x):
                raise self._ended(denoiser, start, i, plan, noise)
        if (i + 1) % LOOK and not fine(x):
            raise self._ended(denoiser, start, i, plan, noise)
        return Samples(x, torch.full((x.shape[0],), rows.each(x.shape[0])))

    def _history(self) -> deque:
        return deque(maxlen=self.memory)

    def _ended(self, denoiser: Denoiser, x: Tensor, last: int, plan: Plan, noise) -> Ended:
        """What went wrong in steps 0 ... last: they are walked again, now with a look at each evaluation and each state."""
        inner, who, history, asked = unwatched(denoiser), type(self).__name__, self._history(), []
        if not fine(x):
            row = first_row(bad_rows(x))
            return Ended("x is not finite before the first step,", at=plan.t[0].item(), row=row, who=who)
        rows = Rows(inner)
        watched = Watched(inner, lambda x0, t: asked.append((t, bad_rows(x0), rows.each(len(x0)))))
        for i in range(last + 1):
            asked.clear()
            x = self.step(watched, x, i, plan, history, noise)
            if not fine(x):
                row = first_row(bad_rows(x))
                for t, bad, nfe in asked:
                    if bad[row]:
                        at = t.expand(len(bad))[row].item()
                        return Ended("the model's estimate is not finite", at=at, nfe=nfe, row=row, who=who)
                break
        # of one level alone, the plan has one time
        at, nfe, why = plan.t[min(i + 1, len(plan.t) - 1)].item(), rows.each(len(x)), "x is not finite"
        if fine(x):
            return Ended(f"{why}, though it was when all was done again,", at=at, nfe=nfe, who=who)
        hint = "more steps, or settings of the sampler nearer to its own"
        return Ended(f"{why}, though the model's estimate is,", hint, at=at, nfe=nfe, row=row, who=who)


def most_steps(sampler: Sampler, nfe: int) -> int:
    """The most steps whose cost is at most nfe, 0 where not even one fits."""
    return bisect_right(range(1, nfe + 1), nfe, key=sampler.cost)  # a step costs at least one evaluation


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    start: Tensor,
    times: Tensor,
    noise,
    last: Literal["stop", "denoise"] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    see: Callable[[Tensor, Tensor], None] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = straight,
) -> Samples:
    """Draw one sample from each row of `start`, which is x at times[0].

    last: "stop" returns x at `sampler.end(times)`, "denoise" adds one evaluation and returns x0_hat there.  callback(i, x) sees
    each state, see(x0_hat, t) each evaluation's x0_hat, also those within a step.
    """
    denoiser = denoiser if see is None else Watched(denoiser, see)
    x, nfe = sampler.walk(denoiser, start, times, noise, callback, progress)
    if (last or sampler.last()) == "denoise":
        rows = Rows(denoiser)
        x = denoiser(x, sampler.end(times))
        nfe = nfe + rows.each(x.shape[0])
        if not fine(x):
            row = first_row(bad_rows(x))
            at, who = sampler.end(times).item(), type(sampler).__name__
            raise Ended("the model's last estimate is not finite", at=at, nfe=int(nfe[row]), row=row, who=who)
    return Samples(x, nfe)
