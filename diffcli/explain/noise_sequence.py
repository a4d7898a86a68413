"""The three qualities of a noise sequence as numbers: p_0 near the data, p_1 near the prior, neighbours that overlap."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.data.base import Data
from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.sde import SDE

CHUNK = 500  # rows of a distance matrix at a time
SNR_GOOD, SNR_BAD = 30.0, 20.0  # dB at t_min: noise of 3 % and 10 % of the data's standard deviation
SCALE_GOOD, SCALE_BAD = 1.0, 4.0  # of the smallest scale of the data
KL_GOOD, KL_BAD = 3e-4, 3e-3  # nats per dimension at t_max: a variance 3 % and 11 % off the prior's
OVERLAP_GOOD = math.exp(-9 / 8)  # Song & Ermon's technique 2 in many dimensions, see `item_overlap`


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and eigenvalues (d,) of the covariance of the data in model space, float64; n items, None if exact."""

    mean: Tensor
    variances: Tensor
    n: int | None = None

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @property
    def square(self) -> float:
        """E ||x||^2."""
        return (self.mean.square().sum() + self.variances.sum()).item()

    @property
    def std(self) -> float:
        """Root mean square deviation of one dimension."""
        return math.sqrt(self.variances.mean().item())


def moments_of_items(x: Tensor) -> Moments:
    """Of items (N, *S): all d eigenvalues of the covariance, from the N x N products of the items where N < d."""
    x = x.flatten(1).double()
    n, d = x.shape
    centred = x - x.mean(0)
    product = centred.T @ centred if d <= n else centred @ centred.T
    found = torch.linalg.eigvalsh(product / n).clamp_min(0)
    return Moments(x.mean(0), torch.cat([found, found.new_zeros(max(0, d - n))]), n)


def moments_of_mixture(mixture: GaussianMixture) -> Moments:
    """Of a mixture: mean `sum w_k m_k`, covariance `sum w_k (C_k + m_k m_k^T)` less that of the mean."""
    w, m = mixture.weights, mixture.means
    mean = w @ m
    second = torch.einsum("k,kij->ij", w, mixture.covs) + torch.einsum("k,ki,kj->ij", w, m, m)
    return Moments(mean, torch.linalg.eigvalsh(second - torch.outer(mean, mean)).clamp_min(0))


def smallest_scale(x: Tensor, levels: int | None) -> tuple[float | None, str]:
    """The finest structure that items (N, *S) in model space can have, per dimension, and what it is.

    One level of the transform where the data have levels, else the median distance to the nearest other item over sqrt(d):
    noise of that size in each dimension moves an item as far as its neighbour is.  None where all items are the same.
    """
    if levels is not None:
        return 2 / levels, "one level of the data"
    x = x.flatten(1).double()
    nearest = []
    for start in range(0, len(x), CHUNK):
        distance = torch.cdist(x[start : start + CHUNK], x)
        distance[distance < 1e-12] = math.inf  # the item itself, and its copies
        nearest.append(distance.amin(1))
    found = torch.cat(nearest)
    found = found[found.isfinite()]
    what = "the median distance to the nearest item" + (" / sqrt(d)" if x.shape[1] > 1 else "")
    return (found.median().item() / math.sqrt(x.shape[1]) if len(found) else None), what


def gaussian_kl(sde: SDE, data: Moments, t: float) -> float:
    """`KL(N(alpha m, alpha^2 C + sigma^2 I) || N(0, prior_std^2 I))` in nats, for the mean m and covariance C of the data.

    As the log-density of the prior is quadratic, the KL of p_t itself is larger by exactly the KL of p_t to the Gaussian
    with its moments: this is a lower bound, attained by Gaussian data.
    """
    alpha2, excess = _at(sde, t, data.variances)
    return (excess.sum() + 0.5 * alpha2 * data.mean.square().sum()).item()


def _at(sde: SDE, t: float, variances: Tensor) -> tuple[float, Tensor]:
    """alpha^2 / prior_std^2, and `(u - 1 - log u)/2` for the variances `u = (alpha^2 c + sigma^2) / prior_std^2`."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha2, sigma2 = ((sde.alpha(time) / sde.prior_std).item() ** 2, (sde.sigma(time) / sde.prior_std).item() ** 2)
    u, a = alpha2 * variances + sigma2, alpha2 * variances + (sigma2 - 1)
    # near the prior u - 1 is small and its logarithm cancels; far from it u is
    return alpha2, 0.5 * (a - torch.where(a.abs() < 0.5, torch.log1p(a.clamp_min(-0.5)), torch.log(u)))


def item_kl(sde: SDE, data: Moments, t: float) -> float:
    """`E KL(q(x_t | x_0) || N(0, prior_std^2 I))` in nats: an upper bound on the KL of p_t, the L_T of the ELBO.

    Ho et al. 2020, eq. 5, arXiv:2006.11239.
    """
    alpha2, excess = _at(sde, t, torch.zeros(data.dimensions, dtype=torch.float64))
    return excess.sum().item() + 0.5 * alpha2 * data.square


def item_overlap(h: Tensor, d: int) -> Tensor:
    """Bhattacharyya coefficient `cosh(h)^(-d/2)` of one item noised to two levels, h apart in lam: 1 where they are equal.

    Both are N(x_0, (sigma/alpha)^2 I) in x/alpha.  In many dimensions these are shells of width sigma/sqrt(2), and the rule
    of Song & Ermon 2020, technique 2, arXiv:2006.09011 (half of one shell lies within 3 widths of the next), is
    `sqrt(2 d) h = 3`, a coefficient of `e^(-9/8) = 0.32`; unlike theirs this one is exact in few dimensions too.
    """
    h = torch.as_tensor(h, dtype=torch.float64).abs()
    log_cosh = h + torch.log1p(torch.exp(-2 * h)) - math.log(2)
    return torch.exp(-0.5 * d * log_cosh)


def levels_needed(span: float, d: int) -> int:
    """The fewest levels, uniform over a range `span` of lam, whose neighbours have an `item_overlap` of OVERLAP_GOOD."""
    step = math.acosh(OVERLAP_GOOD ** (-2 / d)) if d > 0 else math.inf
    return 1 + math.ceil(span / step - 1e-9)


def marginal_overlap(r: Tensor, data: Moments) -> Tensor:
    """Bhattacharyya coefficients of consecutive `N(m, C + r^2 I)`, the data's moments at noise-to-data ratios r (n,): (n - 1,).

    `prod (v w)^(1/4) / sqrt((v + w)/2)` over the variances v, w of the two.  Bhattacharyya 1943; Kailath 1967.
    """
    v = data.variances + r.double()[:, None] ** 2
    v, w = v[:-1].log(), v[1:].log()
    h = (v - w).abs() / 2  # sqrt(v w) / ((v + w)/2) = 1 / cosh(h)
    return torch.exp(-0.5 * (h + torch.log1p(torch.exp(-2 * h)) - math.log(2)).sum(1))


@dataclass(frozen=True)
class Sample:
    """Training items x (N, *S) in model space with what is known of their law; `text` says which they are."""

    x: Tensor
    moments: Moments
    scale: float | None
    scale_text: str
    mixture: GaussianMixture | None
    text: str


def sample_of(data: Data, most: int) -> Sample:
    """At most `most` training items, evenly spread over the file, and their moments: exact where the law is known."""
    items = data.split("train")
    index = torch.linspace(0, len(items) - 1, min(most, len(items)), dtype=torch.float64).round().long()
    x = data.transform.encode(items.__getitems__(index.tolist())[0]).double()
    mixture = getattr(data, "mixture", None)
    moments = moments_of_items(x) if mixture is None else moments_of_mixture(mixture)
    text = f"{len(x):,} of {len(items):,} training items" + ("" if mixture is None else ", the moments exactly")
    return Sample(x, moments, *smallest_scale(x, data.transform.levels), mixture, text)


def near_data(sde: SDE, data: Moments, scale: float | None) -> dict:
    """Quality 1: sigma/alpha at t_min against the data's smallest scale, and its SNR in dB."""
    ratio = math.exp(-sde.lam(torch.tensor(sde.t_min, dtype=torch.float64)).item())
    snr = 20 * math.log10(data.std / ratio) if data.std > 0 else -math.inf
    of_scale = ratio / scale if scale else None
    bad = snr < SNR_BAD or (of_scale or 0) > SCALE_BAD
    good = snr >= SNR_GOOD and (of_scale or 0) <= SCALE_GOOD
    return {
        "t": sde.t_min,
        "noise": ratio,
        "snr_db": snr,
        "scale": scale,
        "noise_in_scales": of_scale,
        "verdict": "bad" if bad else "good" if good else "fair",
    }


def near_prior(sde: SDE, data: Moments) -> dict:
    """Quality 2: the KL of p_1 to the prior, between its bounds, in nats; judged by the lower one, per dimension."""
    low, high = gaussian_kl(sde, data, sde.t_max), item_kl(sde, data, sde.t_max)
    per_dim = low / data.dimensions
    return {
        "t": sde.t_max,
        "prior_std": sde.prior_std,
        "kl": low,
        "kl_per_dim": per_dim,
        "kl_upper": high,
        "kl_upper_per_dim": high / data.dimensions,
        "verdict": "bad" if per_dim > KL_BAD else "good" if per_dim <= KL_GOOD else "fair",
    }


def neighbours(sde: SDE, times: Tensor, data: Moments) -> dict:
    """Quality 3: the least overlap of consecutive levels, of one item's noise and of the marginals, and where it is."""
    times = torch.as_tensor(times, dtype=torch.float64).sort().values
    lam = sde.lam(times)
    items = item_overlap(lam.diff(), data.dimensions)
    marginals = marginal_overlap(torch.exp(-lam), data)
    i = int(marginals.argmin())
    least = items.min().item()
    good, fair = least >= OVERLAP_GOOD, marginals[i].item() >= OVERLAP_GOOD
    return {
        "levels": len(times),
        "item_overlap": least,
        "marginal_overlap": marginals[i].item(),
        "between": [times[i].item(), times[i + 1].item()],
        "levels_needed": levels_needed((lam[0] - lam[-1]).item(), data.dimensions),
        "verdict": "good" if good else "fair" if fair else "apart",
    }


def warnings(sde: SDE, sample: Sample) -> list[str]:
    """A sentence for each of the first two qualities that is clearly bad: training would go on, its samples would show it."""
    found = []
    first, last = near_data(sde, sample.moments, sample.scale), near_prior(sde, sample.moments)
    if first["verdict"] == "bad":
        found.append(
            f"p_0 is far from the data: at t_min = {sde.t_min:g} the noise is {first['noise']:.2g} times the data"
            f" (SNR {first['snr_db']:.0f} dB); a smaller sde.t_min or smallest noise level keeps what is finer"
        )
    if last["verdict"] == "bad":
        found.append(
            f"p_1 is far from the prior: at t_max = {sde.t_max:g} their KL is {last['kl']:.3g} nats"
            f" ({last['kl_per_dim']:.2g} per dimension); more noise, or data of a smaller scale, brings them together"
        )
    return found
