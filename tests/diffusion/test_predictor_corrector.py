"""The corrector beside any predictor: what it keeps, what it mends, what it costs."""

import pytest
import torch
from affine_walk import law_errors
from cases import build, every_path, f64, generator, level, mixture_2d, normal, one_gaussian, usual_paths
from sampler_cases import WALKS, over
from scipy.stats import wasserstein_distance

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import (
    DDIM,
    RK45,
    Ancestral,
    EulerMaruyama,
    FixedGrid,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    sample,
)
from diffcli.randomness import ItemNoise


def standard(d):
    """N(0, I), which VP keeps at every level."""
    return GaussianMixture(f64(1.0), torch.zeros(1, d), torch.eye(d)[None])


class Still(FixedGrid):
    """A predictor that leaves x where it is: what is left is the corrector."""

    kind, order, evaluations = "sde", 1, 0

    def step(self, denoiser, xt, i, plan, history, noise):
        return xt


def corrected(pc, model, x, times, z):
    """One step to times[1]."""
    return pc.step(model, x, 0, pc.plan(model.sde, times), [], lambda counter: z)


@over(WALKS)
def test_without_correction_it_is_its_predictor(sampler):
    """Bit for bit, with the same noise, end and cost."""
    sde = build("vp", "cosine")
    model, times, pc = Exact(sde, mixture_2d()), UniformLam()(sde, 6), PredictorCorrector(sampler, corrector_steps=0)
    noise = ItemNoise(0, range(4), (2,), torch.float64)
    a, b = (sample(model, s, noise(0), times, noise) for s in (sampler, pc))
    assert torch.equal(a.x, b.x) and torch.equal(a.nfe, b.nfe)
    assert (pc.kind, pc.order, pc.last(), pc.cost(6)) == (sampler.kind, sampler.order, sampler.last(), sampler.cost(6))


@every_path
@pytest.mark.parametrize("norms", ["expected", "sample"])
def test_it_is_its_formula(sde, norms):
    """Song et al. 2021, alg. 4-5: gamma = 2 a (snr |z|/|score|)^2 with a = (alpha_t/alpha_s)^2, at most sigma_s^2."""
    model, x, times = Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 6, 2)), UniformLam()(sde, 12)[4:6]
    pc, noise = PredictorCorrector(ReverseDiffusion(), 2, 0.2, norms), ItemNoise(0, range(6), (2,), torch.float64)
    got = sample(model, pc, x, times, noise, last="stop").x
    y, t, s = sample(model, ReverseDiffusion(), x, times, noise, last="stop").x, *times
    for j in range(2):
        score, z, sigma = model.score(y, s), noise(f"corrector 1, step {j}"), sde.sigma(s)
        ratio = z.norm(dim=1) / score.norm(dim=1) if norms == "sample" else sigma * torch.ones(6).double()
        gamma = torch.minimum(2 * (sde.alpha(t) / sde.alpha(s)) ** 2 * (0.2 * ratio) ** 2, sigma**2)[:, None]
        y = y + gamma * score + (2 * gamma).sqrt() * z
    assert torch.allclose(got, y, rtol=1e-7, atol=1e-7 * y.abs().max().item())


@over(WALKS)
def test_costs_are_what_walks_take(sampler):
    sde = build("vp", "linear")
    model, x = Exact(sde, mixture_2d()), normal(0, 3, 2)
    pc, noise = PredictorCorrector(sampler, 2), ItemNoise(0, range(3), (2,), torch.float64)
    for steps in (1, 5):
        found = sample(model, pc, x, UniformLam()(sde, steps), noise, last="stop")
        assert found.nfe.tolist() == [pc.cost(steps)] * 3
        assert pc.cost(steps) == sampler.cost(steps) + 2 * steps
        assert torch.isfinite(found.x).all()
    assert (pc.kind, pc.order, pc.last()) == ("sde", None, "denoise")


@usual_paths
def test_the_corrector_keeps_the_exact_marginal(sde):
    """On one Gaussian, where its step is affine: mean exactly, covariance up to gamma^2 Sigma^-1."""
    model, times = Exact(sde, one_gaussian()), UniformLam()(sde, 10)[5:7]
    mean, cov = level(model.mixture, sde, times[1])
    for snr in (0.05, 0.1):
        pc = PredictorCorrector(Still(), snr=snr)
        plan = pc.plan(sde, times)
        gamma = pc.gamma(None, None, 0, plan)

        def move(x, z, pc=pc):
            return corrected(pc, model, x, times, z)

        zero, axes = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        assert torch.allclose(move(mean[None], zero), mean[None], rtol=1e-9)
        a = (move(mean + axes, torch.zeros(2, 2).double()) - mean).T
        b = (move(mean.expand(2, 2), axes) - mean).T
        after = a @ cov @ a.T + b @ b.T
        assert torch.allclose(after - cov, gamma**2 * torch.linalg.inv(cov), rtol=1e-6, atol=1e-12)


@over({n: WALKS[n] for n in ("ddim", "dpmpp_2m", "unipc", "sa_solver", "abm")})
@pytest.mark.parametrize("snr", [0.3, 0.6])
def test_no_predictor_undoes_the_corrector(sampler, snr):
    """Nor does one that corrects its own last step: the law of one Gaussian is kept."""
    sde = build("vp", "linear")
    _, cov = law_errors(PredictorCorrector(sampler, 2, snr), sde, one_gaussian(), UniformLam()(sde, 60))
    assert cov < 0.1


@pytest.mark.parametrize(("norms", "wide"), [("expected", 1.0), ("sample", 2.25)])
def test_what_norms_of_each_sample_do(norms, wide):
    """On N(0, I) in d = 4 they keep p |score|^2, and z is too wide by 1 + 2/d again: the variance becomes (1 + 2/d)^2."""
    sde, n, d = build("vp", "linear"), 4000, 4
    model, times = Exact(sde, standard(d)), f64(0.61, 0.6)
    pc, x, rng = PredictorCorrector(Still(), snr=0.1, norms=norms), normal(0, n, d) * wide**0.5, generator(1)
    for _ in range(120):
        x = corrected(pc, model, x, times, torch.randn(n, d, dtype=torch.float64, generator=rng))
    assert abs(x.var().item() / wide - 1) < 0.08


@pytest.mark.parametrize(("predictor", "at_most"), [(DDIM(), 0.8), (Ancestral(), 0.8)], ids=["ddim", "ancestral"])
def test_it_mends_a_coarse_predictor(predictor, at_most):
    """The distance to the exact mixture falls: mean of the Wasserstein distances along four directions."""
    sde, mixture, n = build("vp", "linear"), mixture_2d(), 3000
    model, times, start = Exact(sde, mixture), UniformLam()(sde, 20), normal(0, n, 2)
    truth, _ = mixture.sample(4 * n, generator(1))

    def distance(sampler):
        rng = generator(2)
        x = sample(
            model, sampler, start, times, lambda c: torch.randn(n, 2, dtype=torch.float64, generator=rng), "denoise"
        ).x
        axes = [torch.stack([a.cos(), a.sin()]) for a in f64(0.0, 0.8, 1.6, 2.4)]
        return sum(wasserstein_distance((x @ u).numpy(), (truth @ u).numpy()) for u in axes) / 4

    alone, mended = distance(predictor), distance(PredictorCorrector(predictor, 2, 0.4))
    assert mended < at_most * alone, (alone, mended)


@pytest.mark.parametrize("norms", ["expected", "sample"])
def test_an_item_does_not_depend_on_its_neighbours(norms):
    sde = build("ve", "geometric")
    model, times = Exact(sde, mixture_2d()), UniformLam()(sde, 8)

    def draw(items):
        noise = ItemNoise(0, items, (2,), torch.float64)
        scale = f64(*(1.0 + 9 * i for i in items))[:, None]
        return sample(model, PredictorCorrector(EulerMaruyama(), 2, norms=norms), scale * noise(0), times, noise).x

    whole = draw(range(6))
    for items in ([4], [5, 0, 2]):
        assert torch.allclose(draw(items), whole[items], rtol=1e-12, atol=1e-12)


def test_predictor_and_corrector_draw_noise_of_their_own():
    """The predictor's is what it is alone, and no two steps of the corrector share one."""
    sde, asked = build("vp", "linear"), []

    def noise(counter):
        asked.append(counter)
        return torch.zeros(3, 2, dtype=torch.float64)

    sample(Exact(sde, mixture_2d()), PredictorCorrector(Ancestral(), 2), normal(0, 3, 2), UniformLam()(sde, 4), noise)
    assert [c for c in asked if isinstance(c, int)] == [1, 2, 3, 4]
    assert len({c for c in asked if isinstance(c, str)}) == 8


@pytest.mark.parametrize("snr", [0.7, 0.75, 20.0])
def test_no_step_of_the_corrector_is_longer_than_the_noise(snr):
    """gamma = 2 a (snr sigma_s)^2 up to sigma_s^2, the step to the posterior mean."""
    sde = build("ve", "geometric")
    model, times, x = Exact(sde, mixture_2d()), f64(0.61, 0.6), normal(0, 3, 2)
    gamma = min(2 * snr**2, 1) * sde.sigma(times[1]) ** 2
    y = corrected(PredictorCorrector(Still(), snr=snr), model, x, times, torch.zeros(3, 2).double())
    assert torch.allclose(y, x + gamma * model.score(x, times[1]), rtol=1e-9)


def test_a_score_of_zero_moves_no_one_to_infinity():
    """At a stationary point itself |score| = 0: gamma stays at sigma^2."""
    sde = build("vp", "linear")
    model, times, x = Exact(sde, standard(2)), f64(0.61, 0.6), torch.zeros(3, 2, dtype=torch.float64)
    y = corrected(PredictorCorrector(Still(), norms="sample"), model, x, times, normal(0, 3, 2))
    assert torch.allclose(y, 2**0.5 * sde.sigma(times[1]) * normal(0, 3, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PredictorCorrector(RK45()), "chooses its own steps"),
        (lambda: PredictorCorrector(Langevin()), "asks the score alone"),
        (lambda: PredictorCorrector(DDIM(), -1), "corrector_steps must be at least 0"),
        (lambda: PredictorCorrector(DDIM(), snr=0.0), "snr must be above 0"),
        (lambda: PredictorCorrector(DDIM(), norms="batch"), "norms must be expected or sample"),
        (
            lambda: PredictorCorrector(Ancestral("learned")).setup(Exact(build("vp", "linear"), mixture_2d())),
            "variance",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()
