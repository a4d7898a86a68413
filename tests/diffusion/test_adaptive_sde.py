"""The SDE solver that chooses its steps: its Brownian paths, its tolerance, its law."""

import pytest
import torch
from cases import Twice, build, f64, generator, level, mixture_2d, no_noise, noised, normal, one_gaussian, usual_paths
from scipy.stats import kstest

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import AdaptiveSDE, Heun, sample
from diffcli.diffusion.samplers.adaptive_sde import Brownian
from diffcli.randomness import ItemNoise, key


def walk(n: int, accepts, seed: int = 0):
    """W(1) of n items whose steps are accepted by what their increments are, and halved where not; all increments, all steps."""
    rng, brownian, tau, h = generator(seed), Brownian(), torch.zeros(n).double(), torch.full((n,), 0.5).double()
    total, steps = torch.zeros(n, 1).double(), []
    while bool((tau < 1).any()):
        h = torch.minimum(h, 1 - tau)
        end = torch.where(h == 1 - tau, 1.0, tau + h)
        dw = brownian.increment(tau, end, torch.randn(n, 1, dtype=torch.float64, generator=rng))
        accept = (tau < 1) & accepts(dw[:, 0], h)
        steps.append((tau, end, dw[:, 0], accept))
        total = total + torch.where(accept[:, None], dw, 0.0)
        tau, h = torch.where(accept, end, tau), torch.where(accept, 1.7 * h, 0.6 * h).clamp(min=0.02)
    return total[:, 0], steps


def small_increments(dw, h):
    """What an error estimate does: it refuses the large ones, so that what is accepted alone would be too small."""
    return (dw.abs() < 0.4) | (h <= 0.02)


def test_rejected_steps_leave_the_path_brownian():
    total, steps = walk(4000, small_increments)
    assert sum(int((~accept & (tau < 1)).sum()) for tau, _, _, accept in steps) > 4000  # it happens
    assert kstest(total.numpy(), "norm").pvalue > 1e-3
    # whatever was asked for and refused lies on the path that was walked
    for item in range(50):
        w, at = 0.0, {0.0: 0.0}
        for tau, end, dw, accept in steps:
            if tau[item] < 1:
                value = w + dw[item].item()
                assert at.setdefault(end[item].item(), value) == pytest.approx(value, abs=1e-12)
                w = value if accept[item] else w
        assert w == pytest.approx(total[item].item(), abs=1e-12)


def test_increments_are_independent_and_of_their_lengths():
    """Of a path with steps that do not look at it: variance h, no correlation between neighbours."""
    n, rng, brownian = 20_000, generator(1), Brownian()

    def ask(tau, end):
        z = torch.randn(n, 1, dtype=torch.float64, generator=rng)
        return brownian.increment(torch.full((n,), tau).double(), torch.full((n,), end).double(), z)[:, 0]

    ask(0.0, 0.8), ask(0.0, 0.5)  # rejected
    cov = torch.cov(torch.stack([ask(0.0, 0.2), ask(0.2, 0.6), ask(0.6, 1.0)]))
    assert torch.allclose(cov, torch.diag(f64(0.2, 0.4, 0.4)), atol=5 * 0.4 / n**0.5)


@usual_paths
def test_without_noise_it_solves_the_ode(sde):
    """Improved Euler's method: error and tolerance fall together, far below what Euler would leave."""
    model, times = Exact(sde, mixture_2d()), UniformLam()(sde, 1)
    x = noised(sde, model.mixture, 16, sde.t_max)
    end = sample(model, Heun("lam"), x, UniformLam()(sde, 400), no_noise).x
    errors = [
        (sample(model, AdaptiveSDE(tol, 0), x, times, no_noise).x - end).norm(dim=1).median().item()
        for tol in (0.05, 0.002)
    ]
    assert errors[0] < 0.05 and errors[1] < errors[0] / 5
    assert AdaptiveSDE(eta=0).kind == "ode" and AdaptiveSDE().kind == "sde"


@pytest.mark.parametrize("eta", [0.5, 1.0])
@usual_paths
def test_the_law_of_one_gaussian(sde, eta):
    """Each axis of it, Kolmogorov-Smirnov."""
    gaussian, n, rng = one_gaussian(), 1500, generator(7)
    times = UniformLam()(sde, 1)
    start = noised(sde, gaussian, n, sde.t_max, seed=3)

    def noise(counter):
        return torch.randn(start.shape, dtype=start.dtype, generator=rng)

    x, _ = sample(Exact(sde, gaussian), AdaptiveSDE(0.1, eta), start, times, noise, "stop")
    mean, cov = level(gaussian, sde, times[-1])
    white = (x - mean) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T
    assert kstest(white[:, 0].numpy(), "norm").pvalue > 1e-3 and kstest(white[:, 1].numpy(), "norm").pvalue > 1e-3


def test_evaluations_and_the_path_of_an_item():
    """A sample, its evaluations and what a callback sees depend on the seed and the item alone."""
    sde, seen = build("vp", "linear"), []
    times = UniformLam()(sde, 5)

    def draw(items, model, callback=None):
        noise = ItemNoise(0, items, (2,), torch.float64)
        return sample(model, AdaptiveSDE(0.1), (1 + f64(*items)[:, None]) * noise(0), times, noise, "stop", callback)

    model = Exact(sde, mixture_2d())
    whole = draw(range(6), model, lambda i, x: seen.append(x.clone()))
    assert evaluations(model) >= whole.nfe.sum() and len(set(whole.nfe.tolist())) > 1
    for items in ([4], [3, 0, 4]):
        frames = []
        part = draw(items, model, lambda i, x, frames=frames: frames.append(x.clone()))
        assert torch.allclose(part.x, whole.x[items], rtol=1e-9, atol=1e-9) and torch.equal(part.nfe, whole.nfe[items])
        for a, b in zip(frames, seen, strict=True):
            assert torch.allclose(a, b[items], rtol=1e-9, atol=1e-9)
    assert torch.equal(draw(range(6), model).x, whole.x)
    assert torch.equal(draw(range(6), Twice(model)).nfe, 2 * whole.nfe)


@pytest.mark.parametrize("settings", [dict(tol=0.0), dict(tol=1.0), dict(eta=-1.0)])
def test_refusals(settings):
    with pytest.raises(ValueError, match="must"):
        AdaptiveSDE(**settings)


def test_a_callback_sees_the_marginals():
    """Frames lie on a Brownian bridge within the steps, not on a line, whose spread would be less."""
    sde, frames, n = build("vp", "cosine"), [], 3000
    gaussian = one_gaussian()
    times = UniformLam()(sde, 12)
    start = noised(sde, gaussian, n, sde.t_max)
    noise = lambda counter: normal(key(counter) % 2**31, n, 2)  # noqa: E731
    sample(Exact(sde, gaussian), AdaptiveSDE(0.2), start, times, noise, "stop", lambda i, x: frames.append(x.clone()))
    for i in (3, 6, 9):
        cov = level(gaussian, sde, times[i])[1]
        assert torch.allclose(torch.cov(frames[i - 1].T), cov, atol=6 * cov.max().item() / n**0.5)
