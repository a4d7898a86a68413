"""Data to standard normal latents and back: the probability-flow ODE, which is one to one, walked either way."""

from collections.abc import Callable, Iterable
from typing import Literal

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.base import Sampler, Samples, sample, straight


def check_both_ways(sampler: Sampler) -> None:
    """Raises ValueError unless the sampler walks an ODE, and takes the times in either order."""
    fits = "sampler=unipc|dpm3|heun|rk4|rk45"
    require(sampler.kind == "ode", f"only an ODE can be walked back, and this sampler is none: {fits}")
    require(sampler.both_ways, f"this sampler is written for steps from noise to data alone: {fits}")


class Encoding:
    """An ODE sampler on one grid of decreasing times, along which data are encoded and latents decoded.

    `x = alpha_s x0` enters at the grid's last time s, `z = x(t_max) / prior_std` is the latent, in standard normal units, so
    that the model of another SDE can decode it; decoding goes the same times down and gives `x(s) / alpha_s`.  So the two are
    inverses of one another but for the solver's error, of its order and of one more where that is even, as the leading terms
    of there and back cancel.
    noised: `x = alpha_s x0 + sigma_s eps`, which has the law p_s that the model knows, where data without noise lie on a
    manifold and their latents are too short in the directions across it; x0 then comes back with that noise.
    last: what decoding does at s, "stop" or "denoise", which returns x0_hat there.
    A free field (cnf) has its data at s as they are, alpha_s and sigma_s being no part of it.
    Raises ValueError for a sampler that is not an ODE's, or cannot be walked from data to noise, and for a noised free field.
    Song et al. 2021, sec. 4.3 and app. D, arXiv:2011.13456; Song et al. 2021, sec. 4.3, arXiv:2010.02502 (DDIM).
    """

    def __init__(
        self, sampler: Sampler, times: Tensor, noised: bool = False, last: Literal["stop", "denoise"] = "stop"
    ):
        check_both_ways(sampler)
        self.sampler, self.times, self.noised, self.last = sampler, times, noised, last

    def setup(self, denoiser: Denoiser) -> None:
        """Called once, before any work.  Raises ValueError where it does not go with the model."""
        require(denoiser.posterior_mean or not self.noised, "the model is a free field (cnf), whose data have no noise")

    def encode(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        noise: Callable[[str], Tensor] | None = None,
        progress: Callable[[Iterable[int]], Iterable[int]] = straight,
    ) -> Samples:
        """z of x0 (B, *S) in model space, and network evaluations (B,); noise("encode") is what noised adds."""
        sde, x = denoiser.sde, self._scale(denoiser) * x0
        if self.noised:
            x = x + sde.sigma(self.times[-1]).item() * noise("encode")
        x, nfe = sample(denoiser, self.sampler, x, self.times.flip(0), noise, "stop", progress=progress)
        return Samples(x / sde.prior_std, nfe)

    def decode(
        self, denoiser: Denoiser, z: Tensor, progress: Callable[[Iterable[int]], Iterable[int]] = straight
    ) -> Samples:
        """x0 of z (B, *S) in model space, and network evaluations (B,)."""
        x = denoiser.sde.sample_prior(z)
        x, nfe = sample(denoiser, self.sampler, x, self.times, None, self.last, progress=progress)
        return Samples(x / self._scale(denoiser) if self.last == "stop" else x, nfe)

    def _scale(self, denoiser: Denoiser) -> float:
        return denoiser.sde.alpha(self.times[-1]).item() if denoiser.posterior_mean else 1.0
