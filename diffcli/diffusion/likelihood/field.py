"""What a likelihood solver asks of a model: readings and their divergences, counted."""

from typing import NamedTuple

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.likelihood.control import Control
from diffcli.diffusion.likelihood.divergence import Divergence
from diffcli.diffusion.numeric import match


class Reading(NamedTuple):
    """`g = p x + q x0_hat` (B, *S) at (x, t) and its divergence (B, columns); t, p, q () or (B,), float64."""

    x: Tensor
    t: Tensor
    p: Tensor
    q: Tensor
    g: Tensor
    div: Tensor

    def eps(self, sde) -> Tensor:
        """The noise that the model sees in x, `eps = -sigma score`, in float64."""
        on_x, on_g = self._eps(sde)
        return match(on_x, self.x.double()) * self.x.double() + match(on_g, self.g.double()) * self.g.double()

    def div_eps(self, sde) -> Tensor:
        """Its divergence (B, columns)."""
        on_x, on_g = (c.to(self.div.device) for c in self._eps(sde))
        return match(on_x, self.div) * self.x[0].numel() + match(on_g, self.div) * self.div

    def _eps(self, sde) -> tuple[Tensor, Tensor]:
        # eps = (x - alpha x0)/sigma with x0 = (g - p x)/q
        ratio = sde.alpha(self.t) / (sde.sigma(self.t) * self.q)
        return 1 / sde.sigma(self.t) + ratio * self.p, -ratio


class Field:
    """The model of some items: `field(x, t, p, q)` reads it, with one evaluation of the denoiser.

    noise: an ItemNoise of all items, of which these are the rows `items` (None: all).  control: what is known of the divergence.
    varied: whether the probes change along the path, so that the readings' divergences are smooth in t in the mean alone.
    first: the reading at the beginning.  rows: items read so far, each once a call.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        divergence: Divergence,
        noise,
        cond: dict,
        control: Control | None = None,
        items: Tensor | None = None,
    ):
        self.denoiser, self.sde, self.divergence, self.control = denoiser, denoiser.sde, divergence, control
        self.noise, self.cond, self.columns, self.items = noise, cond, divergence.columns, items
        self.varied = divergence.block > 0
        self.first: Reading | None = None
        self.rows, self.readings, self._before = 0, 0, evaluations(denoiser)
        self._block, self._drawn = -1, None

    def __call__(self, x: Tensor, t: Tensor, p: Tensor, q: Tensor) -> Reading:
        probes = self._probes(x)
        g, div = self.divergence(lambda x: self.denoiser.read(x, t, [(p, q)], **self.cond)[0], x, probes)
        if self.control is not None and probes is not None:
            div = div + self.control(self.sde, probes, t, p, q)
        self.rows += len(x)
        reading = Reading(x, t, p, q, g, div)
        self.first = self.first or reading
        return reading

    def _probes(self, x: Tensor) -> Tensor | None:
        """Those of the next reading."""
        block = self.readings // self.divergence.block if self.varied else 0
        if block != self._block:
            drawn = self.divergence.draw(x, self.noise, block)
            self._block, self._drawn = block, drawn if self.items is None or drawn is None else drawn[self.items]
        self.readings += 1
        return self.divergence.patterned(self._drawn, self.readings - 1)

    def take(self, items: Tensor) -> "Field":
        """The field of these items alone (an index), from its beginning: what each gets is what it would get alone."""
        n = None if self.first is None else len(self.first.x)
        cond = {k: v[items] if isinstance(v, Tensor) and v.ndim and len(v) == n else v for k, v in self.cond.items()}
        whole = items if self.items is None else self.items[items]
        return Field(self.denoiser, self.divergence, self.noise, cond, self.control, whole)

    def cost(self) -> int:
        """Evaluations of the network that a call costs an item: 2 under guidance, say."""
        return (evaluations(self.denoiser) - self._before) // max(1, self.rows)
