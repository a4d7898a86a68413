"""An SDE solver that chooses its steps."""

import torch
from torch import Tensor

from diffcli.diffusion.numeric import match
from diffcli.diffusion.ode import MAX_NFE, Adaptive, Pair
from diffcli.diffusion.samplers.adaptive import Counted, run_pair
from diffcli.diffusion.samplers.base import Sampler, straight
from diffcli.diffusion.samplers.eta import check_eta
from diffcli.diffusion.sde import SDE

FIRST = 0.01  # the first step, as a share of the way


class Brownian:
    """One path W of each item (B, *S), known where it was asked for; what is asked next is drawn given what is known.

    A step that is rejected leaves its W(end) behind, and the shorter one is drawn from the bridge to there: a path that is drawn
    anew until a step succeeds is no longer Brownian, since those of large increments fail.
    Gaines & Lyons 1997, SIAM J. Appl. Math. 57; Rackauckas & Nie 2017, Discrete Contin. Dyn. Syst. B 22.
    """

    def __init__(self):
        self.here = self.there = None  # (time (B,), W (B, *S)) of the last start and of the last end
        self.known = []  # the same of ends that were rejected and lie ahead of some item

    def increment(self, tau: Tensor, end: Tensor, z: Tensor) -> Tensor:
        """`W(end) - W(tau)`, by standard normal noise z; tau is where the last step began, or where it ended."""
        if self.here is None:
            self.here = (tau, torch.zeros_like(z))
        else:
            (before, w), (reached, w_reached) = self.here, self.there
            moved = tau != before
            self.here = (tau, torch.where(match(moved, z).bool(), w_reached, w))
            self.known.append((torch.where(moved, -torch.inf, reached), w_reached))
            self.known = [(knot, w) for knot, w in self.known if bool((knot > tau).any())]
        left, w_left = self.here
        right, w_right = torch.full_like(tau, torch.inf), torch.zeros_like(z)
        for knot, w in self.known:
            nearer = (knot > left) & (knot <= end)
            left, w_left = torch.where(nearer, knot, left), torch.where(match(nearer, z).bool(), w, w_left)
            nearer = (knot > end) & (knot < right)
            right, w_right = torch.where(nearer, knot, right), torch.where(match(nearer, z).bool(), w, w_right)
        share = (end - left) / (right - left)  # 0 where nothing is known ahead
        spread = torch.sqrt((end - left) * (1 - share))
        w = w_left + match(share, z) * (w_right - w_left) + match(spread, z) * z
        self.there = (end, w)
        return w - self.here[1]


class ImprovedEuler(Pair):
    """Euler-Maruyama and the stochastic improved Euler method on `dx = fn dlam + eta sigma sqrt(2) dW`, W in lam.

    `x' = x + h a(x, l) + b(l) dW`, `x'' = x + h (a(x, l) + a(x', l + h))/2 + (b(l) + b(l + h))/2 dW`; the step is x'', its error
    x'' - x'.
    """

    calls = 1
    power = 0.9
    longest = 1.0  # the drift is near 0 at both ends of the way, and a step from one to the other would look perfect

    def __init__(self, fn, sde: SDE, eta: float, noise):
        self.fn, self.sde, self.eta, self.noise, self.brownian = fn, sde, eta, noise, Brownian()

    def read(self, y, tau):
        return self.fn(y, tau)

    def start(self, y, first, tol, scales, span):
        return torch.full_like(y[0].flatten(1)[:, 0], FIRST * span, dtype=torch.float64)

    def spread(self, lam: Tensor) -> Tensor:
        """b, the standard deviation of the noise in a unit of lam."""
        return self.eta * 2**0.5 * self.sde.sigma(self.sde.time(lam))

    def attempt(self, y, first, tau, h, k):
        (x,), (a,), end = y, first, tau + h
        low, mean, b = x + match(h, x) * a, 0.0, 0.0
        if self.eta:
            dw, b = self.brownian.increment(tau, end, self.noise(k + 1)), self.spread(tau)
            low = low + match(b, x) * dw
            mean = match((b + self.spread(end)) / 2, x) * dw
        (a_end,) = self.fn((low,), end)
        new = x + match(h / 2, x) * (a + a_end) + mean
        return (new,), (new - low,), None


class AdaptiveSDE(Sampler):
    """The stochastic improved Euler method on the SDE of eta in lam, with a step size an item, to the local error `tol`
    (absolute and relative): `dx = ((dlog(sigma)/dlam - eta^2) x + (1 + eta^2) alpha x0_hat) dlam + eta sigma sqrt(2) dW`.

    Its error is the difference to Euler-Maruyama's step, the next step `0.9 error^-0.9` of this one.  Each item has one Brownian
    path, which rejected steps do not change, drawn by its own seed.  A callback sees a Brownian bridge within the steps.
    It chooses its own steps; the grid gives the first and last time, and the times at which a callback looks.
    An item may take max_nfe evaluations of the denoiser.  Raises ValueError unless 0 < tol < 1, eta >= 0 and max_nfe >= 1.
    Jolicoeur-Martineau et al. 2021, alg. 1, arXiv:2105.14080 (which steps in t); Roberts 2012, arXiv:1210.0933.
    """

    order = 2
    evaluations = None

    def __init__(self, tol: float = 0.02, eta: float = 1.0, max_nfe: int = MAX_NFE):
        self.solver, self.eta = Adaptive(tol, max_nfe), check_eta(eta)
        self.kind = "sde" if self.eta else "ode"

    def walk(self, denoiser, x, times, noise, callback=None, progress=straight):
        sde, k = denoiser.sde, self.eta**2

        def drift(y, at):
            t = sde.time(at)
            return (denoiser.reading(y[0], t, sde.dlog_sigma(t) / sde.dlam(t) - k, (1 + k) * sde.alpha(t)),)

        def path(at, tau, end, x, new, first, last):
            u = torch.where(end > tau, (at - tau) / (end - tau), 1.0).clamp(0, 1)
            line = x + match(u, x) * (new - x)
            if not self.eta:
                return line
            spread = pair.spread(at) * torch.sqrt(u * (1 - u) * (end - tau))
            return line + match(spread, x) * noise(f"frame at {at.item()}")

        fn = Counted(drift)
        pair = ImprovedEuler(fn, sde, self.eta, noise)
        return run_pair(self, self.solver, pair, fn, denoiser, x, times, callback, path)
