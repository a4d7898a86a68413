"""What every wrapper is, Denoiser -> Denoiser: it changes what is asked of a denoiser, never how it is walked."""

from diffcli.diffusion.denoiser import Denoiser


class Wrapper(Denoiser):
    """A denoiser around `inner`, on its SDE and with its kinds of reading; a subclass writes `parts`, by `inner.evaluate`.

    Conditions go through as keywords, each with a row an item: `label` (B,) int64, -1 for none; `vector` (B, k) and `image`
    (B, *S'), a row of NaN for none; `measurement` (B, *M) of an inverse problem.
    """

    def __init__(self, inner: Denoiser):
        super().__init__(inner.sde)
        self.inner = inner
        self.posterior_mean, self.double_backward = inner.posterior_mean, inner.double_backward
        self.calls = inner.calls
