"""Which modes of a known mixture the samples reach, how often, and what lies between them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.diffusion.exact import GaussianMixture
from diffcli.errors import UsageError
from diffcli.metrics.two_sample import checked

WITHIN = 0.9973  # the part of a component's own draws that count as near it: 3 sd in one dimension
MISSING = 0.1  # of what its weight promises: a mode with fewer samples near it is missing


@dataclass
class ModeCoverage:
    """How n samples spread over K modes; lists have one entry a mode.

    share: the mean posterior probability of each mode, whose expectation is the weight for perfect samples, std_err its
    standard error and weight_std_err that of perfect samples, at most.  near: samples nearest in posterior probability that
    lie within `radius` sd.  total_variation: half the sum of |share - weight|, total_variation_floor what perfect samples
    give, at most.  between: the part of the samples that lie near no mode, between_exact of perfect ones, at most.
    missing: modes with fewer than a tenth of the samples that their weight promises; unknown: modes of which perfect
    samples, too, might show none (probability above 1 %).
    """

    n: int
    modes: int
    covered: int
    radius: float
    weights: list[float]
    share: list[float]
    std_err: list[float]
    weight_std_err: list[float]
    near: list[int]
    total_variation: float
    total_variation_floor: float
    between: float
    between_std_err: float
    between_exact: float
    missing: list[int]
    unknown: list[int]


def mode_coverage(samples: Tensor, mixture: GaussianMixture, within: float = WITHIN) -> ModeCoverage:
    """Assign samples `(n, *S)` to the modes of the mixture whose draws they should be.

    A sample belongs to the mode of the largest posterior probability, and is near it where its Mahalanobis distance is at
    most r, `P(chi^2_d <= r^2) = within`; with 0.9973 that is 3 sd for d = 1, the usual bound of a high-quality sample.
    Raises UsageError for another dimension or fewer than 2 samples, NumericalError for a non-finite one.
    """
    from scipy.stats import chi2

    x, means = checked(samples.reshape(len(samples), -1), mixture.means.to(samples.device), least=1)
    n, (k, d) = len(x), means.shape
    if n < 2:
        raise UsageError(f"{n} samples show no share of the modes; at least 2 are needed")
    log_joint = mixture.components(x.to(mixture.means.device))[0]
    posterior = torch.softmax(log_joint, 1)
    radius2 = float(chi2.ppf(within, d))
    # log w N = log w - d/2 log 2 pi - log det / 2 - M^2 / 2
    peak = mixture.weights.log() - 0.5 * (mixture.variances.log() + math.log(2 * math.pi)).sum(1)
    near_each = 2 * (peak - log_joint) <= radius2
    near_any = near_each.any(1)
    best = posterior.argmax(1)
    near = torch.bincount(best[near_each.gather(1, best[:, None])[:, 0]], minlength=k)
    weights, share = mixture.weights, posterior.mean(0)
    expected_err = (weights * (1 - weights) / n).sqrt()
    unknown = (1 - weights) ** n > 0.01
    missing = (near < MISSING * within * n * weights) | (near == 0)
    missing &= ~unknown
    between = 1 - near_any.double().mean().item()
    return ModeCoverage(
        n=n,
        modes=k,
        covered=int((near > 0).logical_and(~missing).sum()),
        radius=math.sqrt(radius2),
        weights=weights.tolist(),
        share=share.tolist(),
        std_err=(posterior.std(0) / math.sqrt(n)).tolist(),
        weight_std_err=expected_err.tolist(),
        near=near.tolist(),
        total_variation=0.5 * (share - weights).abs().sum().item(),
        total_variation_floor=0.5 * math.sqrt(2 / math.pi) * expected_err.sum().item(),
        between=between,
        between_std_err=math.sqrt(between * (1 - between) / n),
        between_exact=1 - within,
        missing=missing.nonzero()[:, 0].tolist(),
        unknown=unknown.nonzero()[:, 0].tolist(),
    )
