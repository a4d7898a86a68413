"""Classifier-free guidance."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.contrasted import Contrasted
from diffcli.diffusion.numeric import require

CONDITIONS = ("label", "vector", "image")  # that a model may be told; a measurement is the wrapper's that asks for it


class ClassifierFree(Contrasted):
    """`s(x,t|y) + gamma (s(x,t|y) - s(x,t|∅))`, gamma = scale: 0 is the plain conditional model, in one evaluation.

    Others write `s(∅) + w (s(y) - s(∅))`, w = 1 + gamma.  Both are asked in one batch of twice the size.  With the exact pieces
    it is the score of `p_t(x|y) (p_t(x|y) / p_t(x))^gamma` at each level alone: these laws belong to no process, so that
    samples do not follow `p(x|y) p(y|x)^gamma`.  scale, interval: see `Guided`; rescale: see `Contrasted`.
    Raises ValueError as they do, and where it is asked without a condition.  Ho & Salimans 2022, arXiv:2207.12598.
    """

    def __init__(
        self,
        inner: Denoiser,
        scale: float = 1.0,
        interval: list[float] | tuple[float, ...] = (0.0, 1.0),
        rescale: float = 0.0,
    ):
        super().__init__(inner, scale, interval, rescale)
        self.calls = inner.calls * (2 if scale else 1)

    def both(self, name, xt, t, **cond):
        require(
            any(k in CONDITIONS for k in cond), "classifier-free guidance needs a condition: a label, vector or image"
        )
        doubled = {k: torch.cat([a, nothing(a) if k in CONDITIONS else a]) for k, a in cond.items()}
        times = torch.cat([t, t]) if t.ndim else t
        found = getattr(self.inner, name)(torch.cat([xt, xt]), times, **doubled)
        if isinstance(found, Tensor):
            return found.chunk(2)
        return tuple(zip(*(halves(a, len(xt)) for a in found), strict=True))

    def contrast(self, xt, t, **cond):
        (c_skip, c_out, out), (_, _, none) = self.both("evaluate", xt, t, **cond)
        return c_skip, c_out, out, none


def nothing(condition: Tensor) -> Tensor:
    """∅ for each row: the label -1, of anything else a row of NaN."""
    return torch.full_like(condition, math.nan if condition.is_floating_point() else -1)


def halves(a: Tensor | float, n: int) -> tuple:
    """The first n and the last n rows of what has 2n rows; a coefficient of all of them, twice."""
    return a.chunk(2) if isinstance(a, Tensor) and a.ndim and len(a) == 2 * n else (a, a)
