"""The closed-form minimiser of the implicit score-matching loss among sums of Gaussian kernels' gradients."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.fitted import Fitted
from diffcli.diffusion.kernel_density import LEAST
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.numeric import require
from diffcli.diffusion.sde import SDE

BANDWIDTHS = tuple(2.0**k for k in range(-4, 4))  # tried, in units of the root mean square of x
RIDGES = tuple(10.0**-k for k in range(2, 13))  # tried, in units of the largest eigenvalue of G
SAMPLES = 1000  # noised items of which the expectations are means, to fit and to hold out, each


class Features:
    """`k(x_i, c_j) = exp(-||x_i - c_j||^2 / 2 h^2)` for x (N, d) and c (M, d), and what the implicit loss needs of it."""

    def __init__(self, x: Tensor, c: Tensor, h: float):
        self.x, self.c, self.h = x, c, h
        self.square = (x.square().sum(1)[:, None] - 2 * x @ c.T + c.square().sum(1)).clamp(min=0)
        exponent = -0.5 * self.square / h**2
        self.k = torch.exp(
            exponent.masked_fill(exponent < LEAST, -math.inf)
        )  # what underflows would slow each product by far

    def gram(self) -> Tensor:
        """`G_jl = mean_i grad k(x_i, c_j) . grad k(x_i, c_l)` (M, M), with `grad k = -(x - c) k / h^2`."""
        k, n = self.k, len(self.x)
        cross = (k * (self.x @ self.c.T)).T @ k
        g = k.T @ (k * self.x.square().sum(1)[:, None]) - cross - cross.T + (k.T @ k) * (self.c @ self.c.T)
        return g / (n * self.h**4)

    def trace(self) -> Tensor:
        """`b_j = mean_i Laplacian k(x_i, c_j)` (M,), with `Laplacian k = (||x - c||^2 / h^4 - d / h^2) k`."""
        return ((self.square / self.h**2 - self.x.shape[1]) * self.k).mean(0) / self.h**2

    def score(self, a: Tensor) -> Tensor:
        """`s(x_i) = sum_j a_j grad k(x_i, c_j)` (N, d)."""
        w = self.k * a
        return (w @ self.c - w.sum(1, keepdim=True) * self.x) / self.h**2

    def loss(self, a: Tensor) -> Tensor:
        """The implicit loss `mean_i [tr grad s(x_i) + 1/2 ||s(x_i)||^2] = a^T b + 1/2 a^T G a`."""
        return self.trace() @ a + 0.5 * self.score(a).square().sum(1).mean()


def solve(g: Tensor, b: Tensor, ridges: Tensor) -> tuple[Tensor, Tensor]:
    """mu (R,), the ridges times G's largest eigenvalue, and a (R, M) with `(G + mu I) a = -b` for each."""
    values, vectors = torch.linalg.eigh(g)
    mu = ridges * values[-1]
    return mu, -(vectors.T @ b / (values.clamp(min=0) + mu[:, None])) @ vectors.T


def noisy(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """SAMPLES of the items (N, d), each as often as the next, and as much noise."""
    x0 = x0.repeat(-(-SAMPLES // len(x0)), 1)[:SAMPLES]
    return x0, torch.randn(x0.shape, dtype=torch.float64, generator=generator)


class Kernel(Fitted):
    """`s(x) = sum_j a_j grad_x k(x, c_j)` with a Gaussian kernel and scalars a_j: for it the implicit loss is
    `1/2 a^T G a + a^T b`, so that `(G + mu I) a = -b` is the whole training, one solve a level.

    Fitted at `levels` levels uniform in lam (at one where there is no process), in units in which x has mean 0 and variance 1;
    in between, the score in these units is interpolated linearly in lam, which is exact for N(m, s^2 I).  centres: how many
    noised training items are c; n: how many items there are, a fifth of which is held out.  bandwidth (in units of the root
    mean square of x) and ridge (of G's largest eigenvalue): null takes those with the least held-out loss, level by level.
    Raises ValueError for values out of range.  Hyvärinen 2005; Sutherland et al. 2018, arXiv:1705.08360.
    """

    def __init__(
        self,
        sde: SDE,
        shape: list[int],
        n: int | None = None,
        centres: int = 256,
        levels: int = 16,
        bandwidth: float | None = None,
        ridge: float | None = None,
    ):
        super().__init__(sde)
        require(centres >= 1, f"centres must be at least 1, got {centres}")
        require(levels >= 2, f"levels must be at least 2, got {levels}")
        require(n is None or n >= 2, f"a kernel fit holds items out: it needs at least 2, got {n}")
        for name, value in dict(bandwidth=bandwidth, ridge=ridge).items():
            require(
                value is None or value > 0,
                f"{name} must be above 0, or null for the best on held-out items, got {value}",
            )
        self.tried = BANDWIDTHS if bandwidth is None else (bandwidth,), RIDGES if ridge is None else (ridge,)
        self.n = n = n or 0
        held_out = math.ceil(n / 5)
        m, count, d = min(centres, n - held_out), levels if sde.is_process else 1, math.prod(shape)
        sizes = dict(
            middle=(d,), spread=(), items=(m, d), noise=(m, d)
        )  # c = alpha items + sigma noise, before scaling
        sizes |= dict(alpha=(count,), sigma=(count,), width=(count,), ridge=(count,), coefficients=(count, m))
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def fit(self, data: TrainingSet, seed: int = 0) -> dict:
        items = data.items().double().flatten(1)
        require(len(items) == self.n, f"n must be the number of training items, {len(items)}, got {self.n}")
        generator = torch.Generator().manual_seed(seed)
        items = items[torch.randperm(len(items), generator=generator)]
        held_out = math.ceil(len(items) / 5)
        kept = items[held_out:]
        self.middle, self.spread = kept.mean(0), kept.var(0, correction=0).mean().sqrt()
        require(self.spread.item() > 0, "the data do not vary: there is no kernel to fit")
        times = self._times(len(self.alpha))
        self.alpha, self.sigma = self.sde.alpha(times), self.sde.sigma(times)
        self.items = kept[: self.items.shape[0]]
        self.noise = torch.randn(self.items.shape, dtype=torch.float64, generator=generator)
        drawn = [noisy(x, generator) for x in (kept, items[:held_out])]
        losses = []
        for i in range(len(self.alpha)):
            fitting, held = (self._scaled(x0, eps, i) for x0, eps in drawn)
            loss, self.width[i], self.ridge[i], self.coefficients[i] = self._fit_level(fitting, held, self._centres(i))
            losses.append(loss / len(self.middle))
        return {
            "items": len(items),
            "levels": len(losses),
            "held_out_ism": losses,  # a dimension, in units in which x has variance 1
            "bandwidth": self.width.tolist(),
            "ridge": self.ridge.tolist(),
        }

    def _times(self, n: int) -> Tensor:
        """n times uniform in lam, from t_max down to t_min."""
        ends = torch.tensor([self.sde.t_max, self.sde.t_min], dtype=torch.float64)
        if n == 1:
            return ends[1:]
        high, low = self.sde.lam(ends).flip(0).tolist()
        times = self.sde.time(torch.linspace(low, high, n, dtype=torch.float64))
        return times.clamp(self.sde.t_min, self.sde.t_max)

    def _size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Root mean square of `x_t - alpha middle` a dimension."""
        return torch.sqrt((alpha * self.spread) ** 2 + sigma**2)

    def _scaled(self, x0: Tensor, eps: Tensor, i: int) -> Tensor:
        """`x = alpha x0 + sigma eps` at level i, with mean 0 and variance 1."""
        return (self.alpha[i] * (x0 - self.middle) + self.sigma[i] * eps) / self._size(self.alpha[i], self.sigma[i])

    def _centres(self, i: int) -> Tensor:
        return self._scaled(self.items, self.noise, i)

    def _fit_level(self, x: Tensor, held: Tensor, c: Tensor) -> tuple[float, float, float, Tensor]:
        """Held-out loss, bandwidth, ridge and coefficients, with the least loss of those tried."""
        best = (math.inf, 0.0, 0.0, torch.zeros(len(c), dtype=torch.float64))
        for h in self.tried[0]:
            h = h * math.sqrt(x.shape[1])
            features, test = Features(x, c, h), Features(held, c, h)
            mu, found = solve(features.gram(), features.trace(), torch.tensor(self.tried[1], dtype=torch.float64))
            losses = torch.stack([test.loss(a) for a in found])
            i = int(losses.argmin())
            if losses[i] < best[0]:
                best = (losses[i].item(), h, mu[i].item(), found[i])
        require(math.isfinite(best[0]), "no kernel fits: another network.bandwidth, or a larger network.ridge")
        return best

    def _neighbours(self, lam: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The fitted levels below and above lam (B,), each with its weight; the nearest beyond the ends."""
        if len(self.alpha) == 1:
            return [(torch.zeros_like(lam, dtype=torch.int64), torch.ones_like(lam))]
        fitted = torch.log(self.alpha) - torch.log(self.sigma)  # increasing
        low = (torch.searchsorted(fitted, lam.contiguous(), right=True) - 1).clamp(0, len(fitted) - 2)
        share = ((lam - fitted[low]) / (fitted[low + 1] - fitted[low])).clamp(0, 1)
        return [(low, 1 - share), (low + 1, share)]

    def score(self, xt, t, **cond):
        return self.evaluate(xt, t, **cond)[2]

    def parts(self, xt, t, **cond):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        size = self._size(alpha, sigma).to(xt.device).expand(len(xt))[:, None]
        x = (xt.double().flatten(1) - alpha.to(xt.device).view(-1, 1) * self.middle) / size
        total = torch.zeros_like(x)
        for index, weight in self._neighbours((torch.log(alpha) - torch.log(sigma)).to(xt.device).expand(len(xt))):
            for i in index.unique().tolist():
                rows = index == i
                found = Features(x[rows], self._centres(i), self.width[i].item()).score(self.coefficients[i])
                total = total.index_put((rows.nonzero()[:, 0],), weight[rows, None] * found, accumulate=True)
        return 1 / alpha, sigma**2 / alpha, (total / size).to(xt.dtype).view_as(xt)
