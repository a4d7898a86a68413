"""Autoguidance: a model guided away from a worse one."""

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.contrasted import Contrasted
from diffcli.diffusion.guidance.level import AtLevel, reach
from diffcli.diffusion.numeric import combine, match, require


class Autoguided(Contrasted):
    """`x0_hat + gamma (x0_hat - x0_other)`, gamma = scale, x0_other of a worse model of the same data: smaller, less trained.

    Others write `x0_other + w (x0_hat - x0_other)`, w = 1 + gamma.  The other model may be on any SDE; where it has no levels as
    noisy there is no guidance.  told: whether it is given the conditions, else it is asked without.  scale, interval: see
    `Guided`; rescale: see `Contrasted`.  Raises ValueError as they do, and for a free field.
    Karras et al. 2024, arXiv:2406.02507.
    """

    def __init__(
        self,
        inner: Denoiser,
        other: Denoiser,
        scale: float = 1.0,
        interval: list[float] | tuple[float, ...] = (0.0, 1.0),
        rescale: float = 0.0,
        told: bool = True,
    ):
        super().__init__(inner, scale, interval, rescale)
        self.calls = inner.calls + (other.calls if scale else 0)
        require(inner.posterior_mean, "autoguidance compares estimates x0_hat, and a free field (cnf, source) has none")
        self.other, self.told = AtLevel(inner.sde, other), told
        self.only_until(reach(inner.sde, other.sde))

    def both(self, name, xt, t, **cond):
        same = "x0_and_eps" if name == "moments" else name  # the variance is the model's, and the other may have none
        told = cond if self.told else {}
        return getattr(self.inner, name)(xt, t, **cond), getattr(self.other, same)(xt, t, **told)

    def contrast(self, xt, t, **cond):
        (c_skip, c_out, out), (skip, scale, other) = self.both("evaluate", xt, t, **cond)
        # the other's estimate skip xt + scale other, in the model's own units
        return c_skip, c_out, out, combine((match((skip - c_skip) / c_out, xt), xt), (match(scale / c_out, xt), other))
