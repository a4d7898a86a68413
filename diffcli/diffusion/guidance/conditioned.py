"""A denoiser with its conditions bound."""

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.base import Wrapper


class Conditioned(Wrapper):
    """`x0_hat(x, t | given)`: the denoiser inside, at each evaluation given the same conditions, one row an item."""

    def __init__(self, inner: Denoiser, **given):
        super().__init__(inner)
        self.given, self.outputs = given, inner.outputs

    def parts(self, xt, t, **cond):
        return self.inner.evaluate(xt, t, **self.given, **cond)

    def score(self, xt, t, **cond):
        return self.inner.score(xt, t, **self.given, **cond)  # its own, which may hold without noise too

    def velocity(self, xt, t, **cond):
        return self.inner.velocity(xt, t, **self.given, **cond)

    def moments(self, xt, t, **cond):
        return self.inner.moments(xt, t, **self.given, **cond)
