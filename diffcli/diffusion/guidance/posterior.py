"""What a measurement y = A(x0) + s n says of x_t, added to a denoiser that never saw one."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.base import Wrapper
from diffcli.diffusion.inverse import Operator, solve
from diffcli.diffusion.numeric import combine, match, require

ITERATIONS = 200  # of the solver, where it asks the operator alone


class Posterior(Wrapper):
    """`E[x0 | x_t, y] ~ x0_hat + (sigma^2/alpha) grad log p(y | x_t)` for `y = A(x0) + s n`, n ~ N(0, I).

    With `J = dx0_hat/dx_t`, `C = (sigma^2/alpha) J = Cov(x0 | x_t)` and `r = y - A x0_hat`, what is added to x0_hat is
    jacobian     `C^T A^T (A C^T A^T + s^2 I)^-1 r` by `iterations` of a solver, each a product with J^T: exact for Gaussian data
    pigdm        `C^T A^T (v A A^T + s^2 I)^-1 r`, `v = c^2 sigma^2 / (c^2 alpha^2 + sigma^2)`, c = data_std: exact for N(mu, c^2 I)
    dps          `C^T A'^T r / s^2`, which takes p(y | x_t) for N(A(x0_hat), s^2 I): any A that can be differentiated
    replacement  masks alone: the known coordinates of x0_hat become y, without a derivative
    The first three are `scale` times that, of pigdm and dps at most the multiple of it at which `||y - A x0_hat||` is least.
    Under a mask without noise (s = 0) known coordinates become y by every method; replacement does so under noise too, which
    then stays in them.  operator is set up; an evaluation of the model counts once, however often it is differentiated.

    dps knows nothing of Cov(x0 | x_t): for data N(0, c^2 I), A = I and `a = c^2/(2 s^2) <= 1/2` its PF-ODE ends in the law
    N(2 sqrt(a) F(sqrt(a)) y, c^2 e^{-2a} I), F Dawson's function, in place of N(2a/(1 + 2a) y, c^2/(1 + 2a) I): too narrow.

    measurement: y (B, *M); other conditions go to the denoiser inside.  Raises ValueError for a model, a method and an operator
    that do not go together.
    Finzi et al. 2023, arXiv:2306.07526, and Boys et al. 2023, arXiv:2310.06721 (jacobian); Rozet et al. 2024, arXiv:2405.13712
    (its solver); Song et al. 2023, "Pseudoinverse-guided diffusion models" (pigdm); Chung et al. 2023, arXiv:2209.14687 (dps);
    Song et al. 2021, app. I.2, arXiv:2011.13456 (replacement).
    """

    def __init__(
        self,
        inner: Denoiser,
        operator: Operator,
        noise: float = 0.0,
        method: Literal["jacobian", "pigdm", "dps", "replacement"] = "jacobian",
        scale: float = 1.0,
        data_std: float = 0.5,
        iterations: int = 5,
    ):
        super().__init__(inner)
        ways = {"jacobian": self._jacobian, "pigdm": self._pigdm, "dps": self._dps, "replacement": None}
        require(method in ways, f"method must be one of {', '.join(ways)}, got {method!r}")
        require(inner.posterior_mean, "the model is a free field (cnf): it has no x0_hat to compare with a measurement")
        level = torch.tensor(inner.sde.t_max, dtype=torch.float64)
        require(inner.sde.sigma(level).item() > 0, "a model without noise (level.sigma=0) has no x0_hat")
        require(noise >= 0, f"noise must be at least 0, got {noise}")
        require(scale >= 0, f"scale must be at least 0, got {scale}")
        require(data_std > 0, f"data_std must be above 0, got {data_std}")
        require(iterations >= 1, f"iterations must be at least 1, got {iterations}")
        if ways[method] is None:
            require(
                operator.known is not None,
                "method=replacement is for masks, and this measurement is none: method=jacobian|pigdm|dps fit",
            )
            require(scale == 1, "method=replacement has no scale: known coordinates are what they are")
        require(
            operator.linear or ways[method] == self._dps,
            f"the measurement is not linear: method=dps alone fits, not {method}",
        )
        self.operator, self.noise, self.scale = operator, float(noise), float(scale)
        self.data_std, self.iterations, self.method, self._way = float(data_std), iterations, method, ways[method]
        self.double_backward |= self._way is not None  # its parts differentiate the network
        # E[x0 | x_t, y] is y there, whatever a method makes of it
        self._known = operator.known is not None and scale > 0 and (noise == 0 or self._way is None)

    def parts(self, xt: Tensor, t: Tensor, measurement: Tensor | None = None, **cond):
        require(measurement is not None, "a posterior needs its measurement")
        if self._way is None:
            c_skip, c_out, out = self.inner.evaluate(xt, t, **cond)
        else:
            at = _At(self.inner, xt, t, cond)
            delta = self.scale * self._way(at, self.operator.residual(measurement, at.x0))
            c_skip, c_out, out = at.c_skip, at.c_out, at.out + delta / match(at.c_out, xt)
        if self._known:
            fixed = (measurement - match(c_skip, xt) * xt) / match(c_out, xt)
            out = torch.where(self.operator.known, fixed, out)
        return c_skip, c_out, out

    def _jacobian(self, at: "_At", r: Tensor) -> Tensor:
        def back(u):
            return at.covariance(self.operator.adjoint(u))

        # of a trained network C is neither symmetric nor positive: all directions are kept
        return solve(self.operator, back, self.noise**2, r, self.iterations, memory=self.iterations)

    def _pigdm(self, at: "_At", r: Tensor) -> Tensor:
        alpha, sigma, c = self.sde.alpha(at.t), self.sde.sigma(at.t), self.data_std
        spread = match(c**2 * sigma**2 / (c**2 * alpha**2 + sigma**2), r)
        w = solve(lambda w: spread * self.operator(w), self.operator.adjoint, self.noise**2, r, ITERATIONS)
        return self._bounded(at, r, at.covariance(w), 1.0)

    def _dps(self, at: "_At", r: Tensor) -> Tensor:
        step = at.covariance(self.operator.pull(at.x0, r))
        return self._bounded(at, r, step, self.noise**-2 if self.noise else torch.inf)

    def _bounded(self, at: "_At", r: Tensor, step: Tensor, most: float) -> Tensor:
        """The step times at most `most`, and not beyond the least misfit along it: `min(most, <A step, r> / ||A step||^2)`.

        No step of an exact posterior mean reaches that bound: `A C A^T (A C A^T + s^2 I)^-1` lies between 0 and I.
        """
        image = self.operator.push(at.x0, step).double().flatten(1)
        along, size = (image * r.double().flatten(1)).sum(1), image.square().sum(1)
        best = torch.where(size > 0, along / torch.where(size > 0, size, 1.0), 0.0)
        return match(best.clamp(0, most), step) * step


class _At:
    """A denoiser's estimate at (xt, t), and products with the transposed posterior covariance there."""

    def __init__(self, inner: Denoiser, xt: Tensor, t: Tensor, cond: dict):
        with torch.enable_grad():
            self._x = xt.detach().requires_grad_()
            self.c_skip, self.c_out, self._graph = inner.evaluate(self._x, t, **cond)
        self.t, self.out = t, self._graph.detach()
        self._gain = inner.sde.sigma(t) ** 2 / inner.sde.alpha(t)
        self.x0 = combine((match(self.c_skip, xt), xt.detach()), (match(self.c_out, xt), self.out))

    def covariance(self, v: Tensor) -> Tensor:
        """`C^T v = (sigma^2/alpha) (c_skip v + c_out (dF/dx)^T v)` (B, *S)."""
        product = torch.zeros_like(v)
        if self._graph.requires_grad:
            (product,) = torch.autograd.grad(self._graph, self._x, v, retain_graph=True, materialize_grads=True)
        skip, out = self._gain * self.c_skip, self._gain * self.c_out
        return combine((match(skip, v), v), (match(out, v), product))
