"""One pass of denoisers over noised items: the losses and the sums that several checks are made of."""

import torch
from torch import Tensor

from diffcli.diagnosis.levels import Levels
from diffcli.diagnosis.subject import Subject
from diffcli.diffusion.denoiser import Denoiser

SUMS = ("x", "m", "xx", "mm", "xm")  # of x0 and m = x0_hat over the dimensions


class Errors:
    """Of each level and item, (K, n) float64: the times t, `loss[name] = ||eps_theta - eps||^2/d`, where there is a denoiser named
    floor `to_floor[name] = ||eps_theta - eps*||^2/d`, and the sums of x0, x0_hat and their products over dimensions for the
    first denoiser.
    """

    def __init__(self, levels: Levels, t: Tensor, loss: dict[str, Tensor], to_floor: dict, sums: dict[str, Tensor]):
        self.levels, self.t, self.loss, self.to_floor, self.sums = levels, t, loss, to_floor, sums


@torch.no_grad()
def measure(subject: Subject, denoisers: dict[str, Denoiser], x0: Tensor, purpose: str) -> Errors:
    """All denoisers at the same noised items."""
    levels, n = subject.levels, len(x0)
    loss = {name: torch.empty(len(levels), n, dtype=torch.float64) for name in denoisers}
    to_floor = {name: torch.empty_like(loss[name]) for name in denoisers if "floor" in denoisers and name != "floor"}
    sums = {name: torch.empty(len(levels), n, dtype=torch.float64) for name in SUMS}
    first, times = next(iter(denoisers)), torch.empty(len(levels), n, dtype=torch.float64)
    for k in range(len(levels)):
        t = times[k] = levels.spread(k, n, subject.generator(purpose, "t", k))
        noise = subject.normal(x0.shape, purpose, "eps", k)
        for part in subject.batches(n):
            clean, eps = subject.to(x0[part]), subject.to(noise[part])
            xt = subject.sde.perturb(clean, t[part], eps)
            found = {}
            for name, denoiser in denoisers.items():
                mean, found[name] = denoiser.x0_and_eps(xt, t[part])
                loss[name][k, part] = _square(found[name] - eps)
                if name == first:
                    x, m = clean.double().flatten(1).cpu(), mean.double().flatten(1).cpu()
                    for key, value in zip(SUMS, (x, m, x * x, m * m, x * m), strict=True):
                        sums[key][k, part] = value.sum(1)
            for name in to_floor:
                to_floor[name][k, part] = _square(found[name] - found["floor"])
    return Errors(levels, times, loss, to_floor, sums)


def _square(a: Tensor) -> Tensor:
    """The mean square of each item."""
    return a.double().flatten(1).square().mean(1).cpu()


def held_out(subject: Subject) -> Errors:
    """The model, its other weights, and the floor on the held-out items; computed once."""
    if "held out" not in subject.kept:
        denoisers = {"model": subject.denoiser}
        if subject.other is not None:
            denoisers["other"] = subject.other
        denoisers["floor"] = subject.truth if subject.truth is not None else subject.kde(subject.x0)
        subject.kept["held out"] = measure(subject, denoisers, subject.x0, "held out")
    return subject.kept["held out"]


def training(subject: Subject) -> Errors:
    """The model on as many training items."""
    if "training" not in subject.kept:
        subject.kept["training"] = measure(subject, {"model": subject.denoiser}, subject.train[: subject.n], "training")
    return subject.kept["training"]
