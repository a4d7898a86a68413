"""Kullback–Leibler divergences where the density of the data is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.errors import NumericalError, UsageError
from diffcli.metrics.nearest import Nearest

GROUPS = 16  # disjoint parts of the samples whose spread is the standard error, known to 18 % (15 degrees of freedom)
NEIGHBOUR = 4  # the k of the k-th neighbour


@dataclass
class KL:
    """A divergence in nats with its standard error.

    floor, floor_std_err: the same estimate of as many exact draws; excess: kl - floor, free of most of the bias.
    """

    kl: float
    std_err: float
    n: int
    floor: float | None = None
    floor_std_err: float | None = None
    excess: float | None = None
    excess_std_err: float | None = None


def kl_to_density(
    samples: Tensor, log_prob: Callable[[Tensor], Tensor], exact: Tensor | None = None, k: int = NEIGHBOUR
) -> KL:
    """Estimate `KL(q || p) = E_q[log q - log p]` of samples `(n, *S)` of q, given log p in nats.

    log_prob: x `(n, *S)` -> `(n,)`.  `log q` at a sample is its k-th nearest other's, `psi(k) - psi(n) - log V_d - d log r`,
    V_d the volume of the unit ball (Kozachenko and Leonenko 1987; Kraskov et al. 2004, eq. 20).
    exact: draws from p itself, whose own estimate is the floor: what perfect samples would give; the estimator is biased by
    about n^(-2/d), and most of it is in the floor too.  The standard error is that of GROUPS disjoint parts.
    Raises UsageError for fewer than GROUPS (k + 2) samples, and for samples that are copies of others, which have no density;
    NumericalError for a non-finite sample or log p.
    """
    kl, std_err = _estimate(samples, log_prob, k)
    if exact is None:
        return KL(kl, std_err, len(samples))
    floor, floor_err = _estimate(exact[: len(samples)], log_prob, k)
    return KL(kl, std_err, len(samples), floor, floor_err, kl - floor, math.hypot(std_err, floor_err))


def _estimate(x: Tensor, log_prob: Callable[[Tensor], Tensor], k: int) -> tuple[float, float]:
    if len(x) < GROUPS * (k + 2):
        raise UsageError(f"the density of {len(x)} samples cannot be estimated; at least {GROUPS * (k + 2)} are needed")
    log_p = _finite(log_prob(x), "log p").to(x.device)
    x = x.reshape(len(x), -1).double()
    kl = (log_density(x, k) - log_p).mean().item()
    parts = [(log_density(x[i::GROUPS], k) - log_p[i::GROUPS]).mean() for i in range(GROUPS)]
    std_err = torch.stack(parts).std().item() / math.sqrt(GROUPS)
    return kl, std_err


def log_density(x: Tensor, k: int = NEIGHBOUR) -> Tensor:
    """Estimate the log density of the law of x `(n, d)` at each of them, from its k-th nearest other; nats, `(n,)`."""
    n, d = x.shape
    radius = Nearest(x, k)(x, skip=torch.arange(n))[0][:, -1]
    copies = int((radius == 0).sum())
    if copies:
        raise UsageError(f"{copies} of {n} samples equal {k} others, so their law has no density")
    volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    psi = torch.digamma(torch.tensor([k, n], dtype=torch.float64))
    return (psi[0] - psi[1]).item() - volume - d * radius.log()


def kl_from_log_densities(log_p: Tensor, log_q: Tensor) -> KL:
    """Estimate `KL(p || q) = E_p[log p - log q]` from the two log densities `(n,)` in nats at the same draws of p.

    Raises UsageError for fewer than 2 or counts that differ, NumericalError for a non-finite one.
    """
    if log_p.shape != log_q.shape or log_p.ndim != 1 or len(log_p) < 2:
        raise UsageError(
            f"two log densities of at least 2 items are needed, not {tuple(log_p.shape)} and {tuple(log_q.shape)}"
        )
    gap = _finite(log_p, "log p").cpu() - _finite(log_q, "log q").cpu()
    return KL(gap.mean().item(), gap.std().item() / math.sqrt(len(gap)), len(gap))


def _finite(log_p: Tensor, name: str) -> Tensor:
    log_p = log_p.double()
    bad = ~log_p.isfinite()
    if bad.any():
        raise NumericalError(f"{name} of item {int(bad.nonzero()[0])} is {log_p[bad][0].item()}")
    return log_p
