"""The laws of the installed program on this machine: what shows that a torch version, a processor or a GPU computes right."""

import math
import time
from collections.abc import Callable, Iterable

import torch

from diffcli.diagnosis import laws_density, laws_likelihood, laws_machine, laws_paths, laws_samplers
from diffcli.diagnosis.law import Claim, Law
from diffcli.diffusion.samplers.base import straight

CLAIMS: list[Claim] = [
    *laws_paths.LAWS,
    *laws_density.LAWS,
    *laws_samplers.LAWS,
    *laws_likelihood.LAWS,
    *laws_machine.LAWS,
]


def run(
    device: torch.device | str = "cpu",
    progress: Callable[[Iterable[Claim]], Iterable[Claim]] = straight,
    claims: Iterable[Claim] = CLAIMS,
) -> list[Law]:
    """Measure each law; what cannot be measured has failed, with the error in its place.

    Float64 wherever the device has it; fixed seeds, so that two runs on one machine agree.  progress wraps the claims, each of
    which has a name.
    """
    return [check(claim, torch.device(device)) for claim in progress(claims)]


def check(claim: Claim, device: torch.device) -> Law:
    """One law."""
    begun = time.monotonic()
    try:
        with torch.random.fork_rng():  # new networks draw their weights from the global generator
            value, where = claim.measure(device)
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
        value, where = math.inf, f"{type(error).__name__}: {error}".splitlines()[0]
    return Law(
        claim.name,
        claim.formula,
        claim.source,
        value,
        claim.bound,
        value <= claim.bound,
        round(time.monotonic() - begun, 3),
        where,
    )
