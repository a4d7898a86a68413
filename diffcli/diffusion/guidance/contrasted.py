"""Guidance by the difference of two estimates."""

from abc import abstractmethod

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance.guided import Guided, is_none
from diffcli.diffusion.numeric import match, require


class Contrasted(Guided):
    """`x0_hat + gamma (x0_hat - x0_other)`, and so of every linear reading; a subclass says what the other estimate is.

    rescale: phi in `x0 (phi std(x0_hat) / std(x0) + 1 - phi)`, x0 the guided estimate, std over an item: it takes back the
    contrast that a large gamma adds.  A learned variance is the first estimate's.
    Raises ValueError unless 0 <= rescale <= 1, and for a rescale where x0_hat means nothing.
    Lin et al. 2024, sec. 3.4, arXiv:2305.08891 (rescale).
    """

    def __init__(self, inner: Denoiser, scale: float, interval: list[float] | tuple[float, ...], rescale: float):
        super().__init__(inner, scale, interval)
        require(0 <= rescale <= 1, f"rescale must lie in [0, 1], got {rescale}")
        clean = self.sde.sigma(torch.tensor(self.sde.t_min, dtype=torch.float64)).item() == 0
        require(
            rescale == 0 or (inner.posterior_mean and not clean),
            "rescale compares estimates x0_hat, and this model has none (a free field, or a level without noise): rescale=0",
        )
        self.rescale = float(rescale)

    @abstractmethod
    def both(self, name: str, xt: Tensor, t: Tensor, **cond) -> tuple:
        """What the method `name` of the model gives, and what it gives of the other estimate."""

    @abstractmethod
    def contrast(self, xt: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`c_skip`, `c_out`, F of the model, and the F that the other estimate would have: with the same c_skip and c_out."""

    def parts(self, xt, t, **cond):
        gamma = self.strength(t)
        if is_none(gamma):
            return self.inner.evaluate(xt, t, **cond)
        c_skip, c_out, out, other = self.contrast(xt, t, **cond)
        guided = out + match(gamma, out) * (out - other)
        if not self.rescale:
            return c_skip, c_out, guided
        before, after = (self._combine(xt, c_skip, c_out, f, [(0.0, 1.0)])[0] for f in (out, guided))
        ratio = self._ratio(before, after)
        return c_skip * ratio, c_out * ratio, guided

    def score(self, xt, t, **cond):
        return self._reading("score", xt, t, cond)  # the model's own, which may hold without noise too

    def velocity(self, xt, t, **cond):
        return self._reading("velocity", xt, t, cond)

    def _reading(self, name: str, xt: Tensor, t: Tensor, cond: dict) -> Tensor:
        gamma = self.strength(t)
        if is_none(gamma):
            return getattr(self.inner, name)(xt, t, **cond)
        if self.rescale:
            return getattr(super(), name)(xt, t, **cond)
        found, other = self.both(name, xt, t, **cond)
        return found + match(gamma, found) * (found - other)

    def moments(self, xt, t, **cond):
        gamma = self.strength(t)
        if is_none(gamma):
            return self.inner.moments(xt, t, **cond)
        (x0, eps, v), (x0_other, eps_other, *_) = self.both("moments", xt, t, **cond)
        guided, gamma = x0 + match(gamma, x0) * (x0 - x0_other), match(gamma, x0)
        if not self.rescale:
            return guided, eps + gamma * (eps - eps_other), v
        guided = match(self._ratio(x0, guided), guided) * guided
        p, q = self._eps(t)
        return guided, match(p, xt) * xt + match(q, guided) * guided, v

    def _ratio(self, before: Tensor, after: Tensor) -> Tensor:
        """`phi std(before) / std(after) + 1 - phi` (B,) float64; 1 where an item is flat."""
        std, guided = (a.double().flatten(1).std(1, correction=0) for a in (before, after))
        return 1 + self.rescale * torch.where(guided > 0, std / guided - 1, 0.0)
