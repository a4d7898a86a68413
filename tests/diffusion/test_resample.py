"""RePaint's resampling: what it is made of, what it keeps, and what it mends."""

import pytest
import torch
from affine_walk import law_errors
from cases import build, f64, generator, mixture_2d, normal, one_gaussian, usual_paths
from sampler_cases import WALKS, over

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.guidance import Conditioned
from diffcli.diffusion.guidance.posterior import Posterior
from diffcli.diffusion.inverse import Mask
from diffcli.diffusion.samplers import DDIM, RK45, Ancestral, FixedGrid, Langevin, Resample, sample
from diffcli.randomness import ItemNoise


@over(WALKS)
def test_once_is_its_predictor(sampler):
    """Bit for bit, with the same noise, end and cost."""
    sde = build("vp", "cosine")
    model, times, once = Exact(sde, mixture_2d()), UniformLam()(sde, 6), Resample(sampler, resamples=1, jump=2)
    noise = ItemNoise(0, range(4), (2,), torch.float64)
    a, b = (sample(model, s, noise(0), times, noise) for s in (sampler, once))
    assert torch.equal(a.x, b.x) and torch.equal(a.nfe, b.nfe)
    assert (once.kind, once.order, once.last(), once.cost(6)) == (
        sampler.kind, sampler.order, sampler.last(), sampler.cost(6),
    )  # fmt: skip


@over(WALKS)
def test_costs_are_what_walks_take(sampler):
    """A stretch that is cut short by the end of the grid among them."""
    sde = build("vp", "linear")
    model, x, noise = Exact(sde, mixture_2d()), normal(0, 3, 2), ItemNoise(0, range(3), (2,), torch.float64)
    for steps, jump in ((1, 1), (4, 3), (5, 2), (2, 7)):
        resample = Resample(sampler, 3, jump)
        found = sample(model, resample, x, UniformLam()(sde, steps), noise, last="stop")
        assert found.nfe.tolist() == [resample.cost(steps)] * 3
        assert torch.isfinite(found.x).all()
    assert (resample.kind, resample.order, resample.last()) == ("sde", None, "denoise")
    assert Resample(sampler, 3, 1).cost(7) == 3 * 7 * sampler.cost(1)


@usual_paths
def test_it_is_its_formula(sde):
    """Lugmayr et al. 2022, alg. 1, with stretches of two steps: down, up by q(x_t | x_s), down again."""
    model, x, times = Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 6, 2)), UniformLam()(sde, 4)
    noise = ItemNoise(0, range(6), (2,), torch.float64)
    got = sample(model, Resample(DDIM(), 3, 2), x, times, noise, last="stop").x
    for k, stretch in enumerate((times[:3], times[2:])):
        for r in range(3):
            if r:
                ratio, std = sde.transition(stretch[-1], stretch[0])
                x = ratio * x + std * noise(f"stretch {k}, up {r}")
            x = sample(model, DDIM(), x, stretch, noise, last="stop").x
    assert torch.allclose(got, x, rtol=1e-9, atol=1e-9 * x.abs().max().item())


@over({n: WALKS[n] for n in ("ddim", "ancestral", "dpm2", "dpmpp_2m", "unipc", "sa_solver", "lms-rk")})
@usual_paths
def test_it_keeps_the_law_of_an_exact_model(sde, sampler):
    """Of one Gaussian, without Monte Carlo: going up is exact, so that only the predictor's own errors are left."""
    times, gaussian = UniformLam()(sde, 24), one_gaussian()
    alone = sum(law_errors(sampler, sde, gaussian, times))
    again = sum(law_errors(Resample(sampler, 3, 6), sde, gaussian, times))
    assert again < 0.02 + 4 * alone, (alone, again)


def test_its_error_falls_with_the_steps():
    sde, gaussian = build("vp", "linear"), one_gaussian()
    coarse, fine = (sum(law_errors(Resample(Ancestral(), 3, 2), sde, gaussian, UniformLam()(sde, n))) for n in (20, 80))
    assert fine < 0.4 * coarse < 0.2, (coarse, fine)


def test_each_pass_starts_without_a_history():
    """Of a multistep predictor: at jump=1 it is its own first order, whatever came before."""
    sde = build("vp", "linear")
    model, times, noise = Exact(sde, mixture_2d()), UniformLam()(sde, 6), ItemNoise(0, range(4), (2,), torch.float64)
    a, b = (sample(model, Resample(s, 2), noise(0), times, noise).x for s in (DDIM(), WALKS["dpmpp_2m"]))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    seen = []

    class Remembering(FixedGrid):
        kind, order, evaluations, memory = "sde", 1, 1, 3

        def step(self, denoiser, xt, i, plan, history, noise):
            seen.append((i, len(history)))
            history.append(xt)
            return denoiser(xt, plan.t[i])

    sample(model, Resample(Remembering(), 2, 2), noise(0), times[:5], noise, last="stop")
    assert seen == [(0, 0), (1, 1)] * 4


@usual_paths
def test_it_lowers_the_boundary_error_of_replacement(sde):
    """Of two coordinates with correlation 0.95 the first is 1: the second's law is N(0.95, 0.05), which replacement misses.

    Lugmayr et al. 2022, sec. 4.2: what is known and what is not are only harmonised by going back and forth.
    """
    rho, n, y = 0.95, 3000, f64([1.0, 0.0]).expand(3000, 2)
    mixture = GaussianMixture(f64(1.0), torch.zeros(1, 2).double(), f64([0.5, rho / 2], [rho / 2, 0.5])[None])
    mean, var, mask = rho, 0.5 * (1 - rho**2), Mask(f64(1.0, 0.0))
    mask.setup((2,))
    model = Conditioned(Posterior(Exact(sde, mixture), mask, method="replacement"), measurement=y)
    errors = {}
    for name, sampler in {"alone": Ancestral(), 3: Resample(Ancestral(), 3), 10: Resample(Ancestral(), 10)}.items():
        rng = generator(0)

        def noise(_, rng=rng):
            return torch.randn(n, 2, dtype=torch.float64, generator=rng)

        x = sample(model, sampler, sde.sample_prior(noise(0)), UniformLam()(sde, 30), noise, "denoise").x
        assert torch.equal(x[:, 0], y[:, 0])
        errors[name] = abs(x[:, 1].mean().item() - mean), abs(x[:, 1].var().item() / var - 1)
    assert errors["alone"][0] > 0.2 and errors["alone"][1] > 0.8, errors
    assert errors[3][0] < 0.5 * errors["alone"][0] and errors[3][1] < 0.5 * errors["alone"][1], errors
    assert errors[10][0] < 0.03 and errors[10][1] < 0.25, errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Resample(RK45()), "chooses its own steps"),
        (lambda: Resample(Langevin()), "asks the score alone"),
        (lambda: Resample(DDIM(), 0), "resamples must be at least 1"),
        (lambda: Resample(DDIM(), jump=0), "jump must be at least 1"),
        (lambda: Resample(Ancestral("learned")).setup(Exact(build("vp", "linear"), mixture_2d())), "variance"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()
