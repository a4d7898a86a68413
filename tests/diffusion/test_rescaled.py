"""A model under another SDE is the same model: at equal lam, x0_hat is a function of x / alpha alone."""

import pytest
import torch

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.schedule import Cosine, Geometric, Linear
from diffcli.diffusion.sde import VE, VP, SubVP

PAIRS = [
    (VP(Linear()), VE(Geometric(0.01, 50))),
    (VE(Geometric(0.001, 100)), SubVP(Cosine())),
    (SubVP(Linear()), VP(Cosine())),
]


@pytest.mark.parametrize(("inner", "outer"), PAIRS)
def test_rescaled_exact_model_is_the_exact_model_of_the_other_sde(inner, outer):
    mixture = GaussianMixture(
        [0.3, 0.7], [[1.0, 2.0], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]]
    )
    rescaled = Rescaled(outer, Exact(inner, mixture))
    truth = Exact(outer, mixture)
    t = torch.linspace(outer.t_min, outer.t_max, 41, dtype=torch.float64)
    x = torch.randn(41, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (
        1 + outer.sigma(t)[:, None]
    )
    for reading in ("forward", "eps", "score", "velocity", "v"):
        a, b = (getattr(d, reading)(x, t) for d in (rescaled, truth))
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8 * b.abs().max()), reading
    assert evaluations(rescaled) == 5 * 41  # counted at the inner one


def test_time_range_is_that_of_the_trained_levels():
    outer, inner = VE(Geometric(1e-4, 1e4)), VP(Linear())
    Rescaled(outer, Exact(inner, GaussianMixture([1.0], [[0.0]], [[[1.0]]])))
    ends = torch.tensor([outer.t_min, outer.t_max], dtype=torch.float64)
    inner_ends = torch.tensor([inner.t_min, inner.t_max], dtype=torch.float64)
    assert torch.allclose(outer.lam(ends), inner.lam(inner_ends))
