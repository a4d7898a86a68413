"""The one type that samplers, likelihood and guidance know: a posterior-mean estimate and its exact linear readings."""

from abc import abstractmethod

from torch import Tensor, nn

from diffcli.diffusion.numeric import combine, match, transformed
from diffcli.diffusion.sde import SDE

KEPT = 2**14  # coefficients of so many times are kept
ROUND_OFF = 2.0**-51  # of a sum of two numbers, relative to them


class Denoiser(nn.Module):
    """`x0_hat = E[x0 | x_t]` written as `x0_hat = c_skip x_t + c_out F`, and its readings eps, score, v and velocity.

    A subclass writes `parts`.  Readings combine its coefficients in float64 before they touch the state, so that a
    noise prediction read as eps is F itself and loses nothing where sigma or alpha is tiny.
    `xt` is (B, *S); `t` is a float64 tensor () or (B,); conditions go through as keywords; results have xt's shape and dtype.
    """

    double_backward: bool = False  # whether its parts differentiate a network: training then does so twice
    posterior_mean: bool = True  # whether x0_hat is one; of a free field (cnf, source) velocity alone means anything
    outputs: int = 1  # 2 where it also knows the variance of a reverse step, see `moments`
    calls: int = 1  # evaluations of networks that one of its own takes at most: guidance asks twice

    def __init__(self, sde: SDE):
        super().__init__()
        self.sde = sde
        self.rows = 0  # rows of xt evaluated so far, see `evaluations`
        self._kept: dict[tuple[str, float], tuple[float, ...]] = {}

    @abstractmethod
    def parts(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        """`c_skip`, `c_out` (numbers, or float64 of t's shape) and F (shape and dtype of xt): `x0_hat = c_skip xt + c_out F`."""

    def evaluate(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        """`parts`, counted; what a wrapper calls of the denoiser inside it."""
        self.count(xt)
        return self.parts(xt, t, **cond)

    def count(self, xt: Tensor) -> None:
        """One more evaluation of each row of xt."""
        self.__dict__["rows"] = self.rows + xt.shape[0]  # a module's own assignment takes as long as an operation on x

    def forward(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """x0_hat."""
        return self.reading(xt, t, 0.0, 1.0, **cond)

    def eps(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """The noise, `eps = (xt - alpha x0_hat) / sigma`."""
        return self.read(xt, t, [self._eps(t)], **cond)[0]

    def x0_and_eps(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor]:
        """x0_hat and eps from one evaluation."""
        x0, eps = self.read(xt, t, [(0.0, 1.0), self._eps(t)], **cond)
        return x0, eps

    def moments(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor]:
        """x0_hat, eps and v in [0, 1] from one evaluation, of a denoiser with two outputs.

        v (B, *S) says where the log-variance of a reverse step lies between the small and the large one of
        `variance.log_variances`.  Nichol & Dhariwal 2021, eq. 15, arXiv:2102.09672.
        """
        self.count(xt)
        *parts, v = self._variance_parts(xt, t, **cond)
        x0, eps = self._combine(xt, *parts, [(0.0, 1.0), self._eps(t)])
        return x0, eps, v

    def _variance_parts(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`parts`, and v; asked only of a denoiser with two outputs (`check_variance` refuses the others before work)."""
        raise NotImplementedError(f"{type(self).__name__} has no learned variance")

    def score(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """`grad log p_t(xt) = -eps / sigma` (Tweedie)."""
        p, q = self._eps(t)
        sigma = self.sde.sigma(t)
        return self.read(xt, t, [(-p / sigma, -q / sigma)], **cond)[0]

    def v(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """`v = alpha eps - sigma x0_hat`.  Salimans & Ho 2022, app. D, arXiv:2202.00512."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return self.read(xt, t, [(alpha / sigma, -(alpha**2 + sigma**2) / sigma)], **cond)[0]

    def velocity(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """PF-ODE right-hand side, `dx/dt = (sigma'/sigma) xt + (alpha' - alpha sigma'/sigma) x0_hat`."""
        return self.read(xt, t, [(self.sde.dlog_sigma(t), self.sde.alpha(t) * self.sde.dlam(t))], **cond)[0]

    def velocity_lam(self, xt: Tensor, t: Tensor, **cond) -> Tensor:
        """The same field against lam, `dx/dlam = (dlog(sigma)/dlam) xt + alpha x0_hat`: smooth down to sigma = 0."""
        return self.read(xt, t, [(self.sde.dlog_sigma(t) / self.sde.dlam(t), self.sde.alpha(t))], **cond)[0]

    def reading(self, xt: Tensor, t: Tensor, p: float, q: float, **cond) -> Tensor:
        """`p xt + q x0_hat`: any of the readings, by its coefficients at a time of a grid."""
        return self.read(xt, t, [(p, q)], **cond)[0]

    def read(self, xt: Tensor, t: Tensor, readings, **cond) -> list[Tensor]:
        """The linear readings `p xt + q x0_hat = (p + q c_skip) xt + (q c_out) F`, one evaluation for all pairs (p, q)."""
        return self._combine(xt, *self.evaluate(xt, t, **cond), readings)

    @staticmethod
    def _combine(xt: Tensor, c_skip: Tensor, c_out: Tensor, out: Tensor, readings) -> list[Tensor]:
        return [_linear(p, p + q * c_skip, q * c_out, xt, out) for p, q in readings]

    def _eps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.kept("eps", self._eps_at, t)

    def _eps_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sde.sigma(t)
        return 1 / sigma, -self.sde.alpha(t) / sigma

    def kept(self, name: str, fn, t: Tensor) -> tuple[Tensor | float, ...]:
        """The coefficients `fn(t)`; those of a time of a grid, t () on the CPU, are numbers, computed once and not at each step.

        Not where something is differentiated or vectorised by t, nor of an SDE with parameters, which may learn.
        """
        if t.ndim or t.requires_grad or t.device.type != "cpu" or transformed(t):
            return fn(t)
        key = name, t.item()
        if key not in self._kept:
            if next(self.sde.parameters(), None) is not None:
                return fn(t)
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = tuple(c.item() for c in fn(t))
        return self._kept[key]


def _linear(p: Tensor | float, a: Tensor | float, b: Tensor | float, xt: Tensor, out: Tensor) -> Tensor:
    """`a xt + b out`, a new tensor, where a is p and something more."""
    # of an a that cancels, what is left is round-off, and the reading is the network's output in other units
    if isinstance(a, float) and isinstance(b, float) and abs(a) <= ROUND_OFF * abs(p):
        return b * out
    return combine((match(a, xt), xt), (match(b, xt), out))


def evaluations(denoiser: Denoiser) -> int:
    """Rows evaluated so far by the innermost denoisers: what NFE is made of, whatever is wrapped around them."""
    return Rows(denoiser).total()


class Rows:
    """The rows that the innermost denoisers evaluate from now on; they are looked for once."""

    def __init__(self, denoiser: Denoiser):
        inner = [m for m in denoiser.modules() if isinstance(m, Denoiser)]
        self.leaves = [m for m in inner if not any(isinstance(c, Denoiser) for c in m.modules() if c is not m)]
        self.before = self.total()

    def total(self) -> int:
        """All rows so far."""
        return sum(m.rows for m in self.leaves)

    def each(self, batch: int) -> int:
        """Evaluations of each of `batch` items since it was made."""
        return (self.total() - self.before) // batch
