"""Whoever watches a walk sees every estimate that is made, and changes none."""

import pytest
import torch
from cases import PREDICTIONS, Twice, build, normal
from sampler_cases import SAMPLERS, over
from torch import nn

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.prediction import Score
from diffcli.diffusion.samplers import Ancestral, Langevin, sample
from diffcli.diffusion.sde.one import OneLevel
from diffcli.diffusion.watched import Watched
from diffcli.randomness import ItemNoise

STEPS = 5


class Net(nn.Module):
    """A smooth function of x (B, 2) and the time, with weights that nobody trained; `outputs` of them."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(0.4 * torch.randn(3, 16, generator=g), requires_grad=False)
        self.b = nn.Parameter(0.4 * torch.randn(16, 2 * outputs, generator=g), requires_grad=False)

    def forward(self, x, c_noise):
        return torch.tanh(torch.cat([x, 1e-3 * c_noise[:, None]], 1) @ self.w) @ self.b


class Asked(Denoiser):
    """The denoiser inside, and what it was asked."""

    def __init__(self, inner: Denoiser):
        super().__init__(inner.sde)
        self.inner, self.calls = inner, []

    def parts(self, xt, t, **cond):
        self.calls.append((xt, t))
        return self.inner.evaluate(xt, t, **cond)


def walk(sampler, model, see=None, **more):
    """float32 samples of 4 items, and the evaluations that they took."""
    before, noise = evaluations(model), ItemNoise(0, range(4), (2,))
    sampler.setup(model)
    start = sampler.begin(model.sde, noise)
    found = sample(model, sampler, start, UniformLam()(model.sde, STEPS), noise, see=see, **more)
    return found, evaluations(model) - before


@over(SAMPLERS)
@pytest.mark.parametrize("prediction", ["score", "velocity"])
def test_watching_changes_no_bit_and_no_count(sampler, prediction):
    model, seen = PREDICTIONS[prediction](build("vp", "linear"), Net()), []
    alone, rows = walk(sampler, model)
    watched, watched_rows = walk(sampler, model, lambda x0, t: seen.append(x0))
    assert alone.x.dtype == torch.float32 and alone.x.isfinite().all()
    assert torch.equal(watched.x, alone.x)
    assert torch.equal(watched.nfe, alone.nfe) and watched_rows == rows
    assert seen


@over(SAMPLERS)
def test_every_estimate_is_seen_as_it_was_made(sampler):
    """In order, at its own x and t, as a walk that is not watched makes them; none is altered later."""
    model, seen = Asked(PREDICTIONS["v"](build("vp", "linear"), Net())), []
    walk(sampler, model)
    made, model.calls = model.calls, []
    _, rows = walk(sampler, model, lambda x0, t: seen.append((x0, t)))
    # a derivative along the path asks again at an x that was seen, with tangents and not numbers
    plain = [n for n, (x, _) in enumerate(model.calls) if not torch._C._functorch.is_functorch_wrapped_tensor(x)]
    assert len(made) == len(model.calls) == rows // 4
    assert len(seen) == len(plain) and plain
    for (x0, t), n in zip(seen, plain, strict=True):
        (x, at), (x_alone, at_alone) = model.calls[n], made[n]
        assert torch.equal(t, at) and torch.equal(at, at_alone) and torch.equal(x, x_alone)
        assert torch.allclose(x0, model.inner(x, at), rtol=1e-5, atol=1e-6)


def test_a_learned_variance_is_read_through():
    model, seen = PREDICTIONS["eps"](build("vp", "cosine"), Net(2), outputs=2), []
    alone, rows = walk(Ancestral("learned"), model)
    found, watched_rows = walk(Ancestral("learned"), model, lambda x0, t: seen.append(x0))
    assert torch.equal(found.x, alone.x) and torch.equal(found.nfe, alone.nfe) and rows == watched_rows
    assert len(seen) == STEPS + 1
    assert torch.allclose(seen[-1], found.x, rtol=1e-5, atol=1e-6)  # the last one, at the last time, is the sample
    assert not torch.equal(found.x, walk(Ancestral("small"), model)[0].x)


@pytest.mark.parametrize("wrapped", [Twice, lambda inner: Rescaled(build("ve", "geometric"), inner)])
def test_of_a_wrapped_denoiser_the_whole_estimate_is_seen(wrapped):
    """One a call, whatever the wrapper asks inside; evaluations are still those inside."""
    model, seen = wrapped(PREDICTIONS["velocity"](build("vp", "linear"), Net())), []
    alone, _ = walk(SAMPLERS["heun"], model)
    found, _ = walk(SAMPLERS["heun"], model, lambda x0, t: seen.append((x0, t)), last="denoise")
    stopped, _ = walk(SAMPLERS["heun"], model, lambda x0, t: None)
    assert torch.equal(stopped.x, alone.x) and torch.equal(stopped.nfe, alone.nfe)
    assert len(seen) == 2 * STEPS + 1
    assert torch.allclose(seen[-1][0], found.x, rtol=1e-5, atol=1e-6) and torch.equal(
        found.x, model(alone.x, seen[-1][1])
    )


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("family", [Score, Energy])
def test_a_score_without_noise_is_watched_too(family, sigma):
    """At sigma = 0 the score is the only reading, and x itself is x0_hat."""
    model, seen, states = family(OneLevel(sigma=sigma), Net()), [], []
    sampler, times = Langevin(gamma=0.01), torch.zeros(STEPS + 1, dtype=torch.float64)
    noise, start = ItemNoise(0, range(4), (2,)), normal(0, 4, 2).float()
    alone = sample(model, sampler, start, times, noise, callback=lambda i, x: states.append(x))
    found = sample(model, sampler, start, times, noise, see=lambda x0, t: seen.append(x0))
    assert torch.equal(found.x, alone.x) and found.x.isfinite().all() and torch.equal(found.nfe, alone.nfe)
    asked = [start, *states[:-1]]
    assert len(seen) == STEPS
    for x0, x in zip(seen, asked, strict=True):
        score = model.score(x, times[0])
        assert torch.allclose(x0, x + sigma**2 * score, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [Score, Energy])
def test_a_watched_score_is_the_models_own(family):
    model, seen = family(build("vp", "linear"), Net()), []
    x, t = normal(0, 4, 2).float(), torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(Watched(model, lambda x0, t: seen.append((x0, t))).score(x, t), model.score(x, t))
    ((x0, at),) = seen
    assert torch.allclose(x0, model(x, t), rtol=1e-5, atol=1e-6) and at is t
