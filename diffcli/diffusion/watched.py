"""A denoiser that shows what it estimates."""

from collections.abc import Callable

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import match


class Watched(Denoiser):
    """The denoiser inside; `see(x0_hat (B, *S), t)` is called at each of its evaluations, and changes none."""

    def __init__(self, inner: Denoiser, see: Callable[[Tensor, Tensor], None]):
        super().__init__(inner.sde)
        self.inner, self.see = inner, see
        self.outputs, self.posterior_mean = inner.outputs, inner.posterior_mean

    def parts(self, xt, t, **cond):
        c_skip, c_out, out = self.inner.evaluate(xt, t, **cond)
        self.see(self._combine(xt, c_skip, c_out, out, [(0.0, 1.0)])[0], t)
        return c_skip, c_out, out

    def moments(self, xt, t, **cond):
        x0, eps, v = self.inner.moments(xt, t, **cond)
        self.see(x0, t)
        return x0, eps, v

    def score(self, xt, t, **cond):
        # the inner one's own, which holds without noise too; x0_hat by Tweedie
        score, alpha, sigma = self.inner.score(xt, t, **cond), self.sde.alpha(t), self.sde.sigma(t)
        self.see(match(1 / alpha, xt) * xt + match(sigma**2 / alpha, xt) * score, t)
        return score


def unwatched(denoiser: Denoiser) -> Denoiser:
    """The denoiser inside: for a call at a state that was already seen, within a function transform that shows no values."""
    return denoiser.inner if isinstance(denoiser, Watched) else denoiser
