"""Any linear SDE: f(t) and g(t) as the user gives them, solved for alpha and sigma."""

import torch
from torch import Tensor, nn

from diffcli.diffusion.numeric import Constants, require
from diffcli.diffusion.sde.solved import Own, Solved

NODES = 16  # of the Gauss-Legendre rule on each panel
MOST = 4000  # panels
EXACT, ENOUGH = 1e-14, 1e-9  # the error of a panel that is aimed at, and that is accepted where no more panels are left


def _rule(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (n,) and weights (n,) of Gauss-Legendre on [0, 1], and the matrix (n, n) of the integrals from 0 to each node.

    Golub & Welsch 1969, with one Newton step; the matrix integrates the Lagrange polynomials of the nodes, in Legendre's basis:
    `int_{-1}^x P_k = (P_{k+1}(x) - P_{k-1}(x)) / (2k + 1)`.
    """
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    x = torch.linalg.eigvalsh(torch.diag(off, 1) + torch.diag(off, -1))
    p = _legendre(x, n)
    x = x - p[n] * (x**2 - 1) / (n * (x * p[n] - p[n - 1]))
    p = _legendre(x, n)
    w = 2 * (1 - x**2) / (n * p[n - 1]) ** 2
    degree = torch.arange(n, dtype=torch.float64)[:, None]
    integral = torch.cat([(x + 1)[None], (p[2:] - p[:-2]) / (2 * degree[1:] + 1)])  # of P_0 ... P_{n-1}, at each node
    # L_i = sum_k (2k + 1)/2 w_i P_k(x_i) P_k
    matrix = integral.T @ ((2 * degree + 1) / 2 * p[:n] * w)
    return (x + 1) / 2, w / 2, matrix / 2


def _legendre(x: Tensor, n: int) -> Tensor:
    """P_0 ... P_n at x, (n + 1, *x.shape)."""
    p = [torch.ones_like(x), x]
    for k in range(1, n):
        p.append(((2 * k + 1) * x * p[k] - k * p[k - 1]) / (k + 1))
    return torch.stack(p)


class Drift(Solved):
    """`dx = f(t) x dt + g(t) dw`, solved: `alpha = exp(int_0^t f)`, `sigma^2 = alpha^2 R`, `R = sigma_0^2 + int_0^t g^2/alpha^2`.

    f, g: an expression (see `Expression`), a number, or a module t -> value on float64 tensors; sigma_0 is the noise at t = 0.
    The integrals are Gauss-Legendre sums on panels that are halved until they agree with their halves to 1e-14; between two
    edges the same rule runs from the edge to t, so that alpha and sigma stay smooth in t.
    t_min is 0 with sigma_0 > 0, else 1e-5; t_max is 1 where f and g are finite at 1, else 0.999.
    Raises ValueError unless sigma_0 >= 0, f and g can be integrated, and g is not 0 over an interval.
    Song et al. 2021, app. B, arXiv:2011.13456; Karras et al. 2022, app. B.1, arXiv:2206.00364.
    """

    def __init__(
        self,
        f: str | float | nn.Module,
        g: str | float | nn.Module,
        sigma_0: float = 0.0,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        super().__init__()
        require(sigma_0 >= 0, f"sigma_0 must be at least 0, got {sigma_0}")
        self.own_f, self.own_g = Own("f", f), Own("g", g)
        if t_min is None:
            t_min = 0.0 if sigma_0 > 0 else 1e-5
        if t_max is None:
            end = torch.ones(1, dtype=torch.float64)
            t_max = 1.0 if bool((torch.isfinite(self.f(end)) & torch.isfinite(self.own_g(end))).all()) else 0.999
        require(0 < t_max <= 1, f"t_max must lie in (0, 1], got {t_max}")
        self.rule = Constants(*_rule(NODES))
        edges = self._halve(torch.linspace(0, t_max, 9, dtype=torch.float64))
        total, spread = self._integrals(edges[:-1], edges[1:])
        log_alpha = torch.cat([torch.zeros(1, dtype=torch.float64), total.cumsum(0)])
        pieces = torch.exp(-2 * log_alpha[:-1]) * spread
        ratio = sigma_0**2 + torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
        self.panels = Constants(edges, log_alpha, ratio)
        self._check(t_min, t_max)

    def f(self, t: Tensor) -> Tensor:
        return self.own_f(t)

    def g2(self, t: Tensor) -> Tensor:
        return self.own_g(t) ** 2

    def dlam(self, t: Tensor) -> Tensor:
        # -g^2 / (2 sigma^2)
        return -0.5 * self.g2(t) * torch.exp(-2 * self.log_sigma(t))

    def dlog_sigma(self, t: Tensor) -> Tensor:
        return self.f(t) - self.dlam(t)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._solve(t)[0]

    def log_sigma(self, t: Tensor) -> Tensor:
        log_alpha, ratio = self._solve(t)
        return log_alpha + 0.5 * torch.log(ratio)

    def lam(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log(self._solve(t)[1])

    def _lam_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha, ratio = self._solve(t)
        return -0.5 * torch.log(ratio), -0.5 * self.g2(t) * torch.exp(-2 * log_alpha) / ratio

    def _solve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`log(alpha)` and `R = (sigma/alpha)^2` at t."""
        edges, log_alpha, ratio = self.panels.on(t.device)
        i = (torch.searchsorted(edges, t.detach().contiguous(), right=True) - 1).clamp(0, len(edges) - 2)
        total, spread = self._integrals(edges[i], t)
        return log_alpha[i] + total, ratio[i] + torch.exp(-2 * log_alpha[i]) * spread

    def _integrals(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """`int_a^b f` and `int_a^b g^2 exp(-2 int_a^u f) du`, by one rule each."""
        x, w, matrix = self.rule.on(b.device)
        width = (b - a)[..., None]
        u = a[..., None] + width * x
        f = self.own_f(u)
        # sums, not matrix products, whose last bit depends on how many times are asked for at once
        inner = width * (f[..., None, :] * matrix).sum(-1)
        return width[..., 0] * (f * w).sum(-1), width[..., 0] * (self.g2(u) * torch.exp(-2 * inner) * w).sum(-1)

    def _halve(self, edges: Tensor) -> Tensor:
        """The edges with every panel halved until its integrals agree with those of its halves."""
        error = 0.0
        a, b, done = edges[:-1], edges[1:], []
        while len(a):
            middle = 0.5 * (a + b)
            whole, left, right = self._integrals(a, b), self._integrals(a, middle), self._integrals(middle, b)
            total, spread = left[0] + right[0], left[1] + torch.exp(-2 * left[0]) * right[1]
            wrong = torch.maximum(
                (whole[0] - total).abs() / (1 + total.abs()), (whole[1] - spread).abs() / spread.abs()
            )
            wrong = torch.where((spread == 0) & (whole[1] == 0), (whole[0] - total).abs(), wrong)
            bad = ~torch.isfinite(total) | ~torch.isfinite(spread)
            where = a[bad.int().argmax()].item() if len(a) else 0.0
            require(not bool(bad.any()), f"f and g must be finite, and are not near t = {where:.6g}")
            more = wrong > EXACT
            if len(done) + 2 * int(more.sum()) > MOST or bool((b - a)[more].lt(1e-15).any()):
                error = wrong.max().item()
                where = a[wrong.argmax()].item()
                require(error < ENOUGH, f"f and g are too rough to be integrated near t = {where:.6g}")
                more = torch.zeros_like(more)
            done += a[~more].tolist()
            a, b, middle = a[more], b[more], middle[more]
            a, b = torch.cat([a, middle]), torch.cat([middle, b])
        return torch.tensor([*sorted(done), edges[-1].item()], dtype=torch.float64)
