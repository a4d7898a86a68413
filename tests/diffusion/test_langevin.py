"""What samplers that ask the score alone leave invariant, find, and start from."""

import pytest
import torch
from cases import build, every_path, f64, generator, mixture_2d, no_noise, noised, normal
from torch import nn

from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Levels, UniformLam
from diffcli.diffusion.prediction import Score
from diffcli.diffusion.samplers import AnnealedLangevin, Langevin, Mode, sample
from diffcli.diffusion.schedule import NCSN
from diffcli.diffusion.sde import VE, OneLevel
from diffcli.randomness import ItemNoise

UNIT = GaussianMixture(f64(1.0), f64([0.0]), f64(1.0).view(1, 1, 1))


def draws(seed, *shape):
    """Noise that never repeats."""
    rng = generator(seed)
    return lambda counter: torch.randn(*shape, dtype=torch.float64, generator=rng)


def stay(steps):
    return torch.zeros(steps + 1, dtype=torch.float64)


class Field(nn.Module):
    """The score of a density as a network."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, c_noise):
        return self.mixture.score(x).to(x)


@pytest.mark.parametrize("gamma", [0.02, 0.3, 1.0])
def test_langevin_on_a_normal_distribution_has_its_variance(gamma):
    """v <- (1 - gamma)^2 v + 2 gamma, exactly: 1 / (1 - gamma/2).  Without noise in the model (sigma = 0)."""
    model, sampler, x = Score(OneLevel(1.0, 0.0), Field(UNIT)), Langevin(gamma=gamma), f64([1.0])
    sampler.setup(model)
    pull = sample(model, sampler, x, stay(1), lambda c: 0 * x).x.item()
    push = sample(model, sampler, 0 * x, stay(1), lambda c: torch.ones_like(x)).x.item()
    assert abs(push**2 / (1 - pull**2) - 1 / (1 - gamma / 2)) < 1e-12


def test_langevin_draws_that_variance():
    """Monte Carlo, to four standard errors, where gamma = 0.5 makes 4/3 of 1."""
    n, gamma = 20000, 0.5
    x = sample(Exact(OneLevel(1.0, 1e-4), UNIT), Langevin(gamma=gamma), 3 + normal(0, n, 1), stay(30), draws(1, n, 1)).x
    variance = 1 / (1 - gamma / 2)
    assert abs(x.mean().item()) < 4 * (variance / n) ** 0.5
    assert abs(x.var().item() / variance - 1) < 4 * (2 / n) ** 0.5


@every_path
def test_steps_are_their_formulas(sde):
    """x + gamma score + sqrt(2 gamma) z, gamma = r sigma^2, at the last time or at t."""
    model, x, z, times = Exact(sde, mixture_2d()), normal(0, 6, 2), normal(1, 6, 2), UniformLam()(sde, 3)
    for t in (None, 0.5 * (sde.t_min + sde.t_max)):
        at = times[-1] if t is None else f64(t)[0]
        # through x0_hat, as samplers read it: the exact score's own reading keeps digits that this one loses
        gamma, score = 0.7 * sde.sigma(at) ** 2, Denoiser.score(model, x, at)
        for sampler, step, noise in (
            (Langevin(0.7, t=t), gamma * score + (2 * gamma).sqrt() * z, lambda c: z),
            (Langevin(gamma=0.03, t=t), 0.03 * score + 0.06**0.5 * z, lambda c: z),
            (Mode(0.7, t=t), gamma * score, no_noise),
            (Mode(gamma=0.03, t=t), 0.03 * score, no_noise),
        ):
            got = sample(model, sampler, x, times[-2:], noise).x
            assert torch.allclose(got, x + step, rtol=1e-9, atol=1e-9 * step.abs().max().item())
            denoised = sample(model, sampler, x, times[-2:], noise, last="denoise").x
            assert torch.allclose(denoised, model(x + step, at), rtol=1e-7, atol=1e-7)


@every_path
@pytest.mark.parametrize("first", [True, False])
def test_annealed_langevin_is_its_algorithm(sde, first):
    """Song & Ermon 2019, alg. 1, with epsilon/2 = gamma: the levels after the first, or all of them; x_0_hat at the end."""
    model, x, times = Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 5, 2)), UniformLam()(sde, 4)
    got = sample(model, AnnealedLangevin(0.2, 3, first), x, times, draws(2, 5, 2))
    z, y = draws(2, 5, 2), x
    for t in times if first else times[1:]:
        for _ in range(3):
            gamma = 0.2 * sde.sigma(t) ** 2
            y = y + gamma * model.score(y, t) + (2 * gamma).sqrt() * z(0)
    assert torch.allclose(got.x, model(y, times[-1]), rtol=1e-7, atol=1e-7)
    assert got.nfe.tolist() == [3 * (4 + first) + 1] * 5


def test_costs_are_what_walks_take():
    sde = build("vp", "cosine")
    x = normal(0, 3, 2)
    for sampler in (Langevin(), Mode(), AnnealedLangevin(level_steps=3), AnnealedLangevin(level_steps=3, first=False)):
        for steps in (1, 5):
            model, seen = Exact(sde, mixture_2d()), []
            found = sample(
                model,
                sampler,
                x,
                UniformLam()(sde, steps),
                lambda c: 0 * x,
                "stop",
                lambda i, _, seen=seen: seen.append(i),
            )
            assert found.nfe.tolist() == [sampler.cost(steps)] * 3
            assert evaluations(model) == 3 * sampler.cost(steps)
            assert seen == list(range(1, steps + 1))


def test_each_inner_step_draws_its_own_noise():
    sde, asked = build("vp", "linear"), []

    def noise(counter):
        asked.append(counter)
        return torch.zeros(2, 2, dtype=torch.float64)

    sample(Exact(sde, mixture_2d()), AnnealedLangevin(level_steps=3), normal(0, 2, 2), UniformLam()(sde, 4), noise)
    assert len(asked) == len(set(asked)) == 15 and 0 not in asked


@pytest.fixture(scope="module")
def two_modes():
    """Song & Ermon 2019, sec. 3.2.2 and fig. 3: weights 0.2 and 0.8, uniform start on [-8, 8]^2."""
    mixture = GaussianMixture(
        f64(0.2, 0.8), f64([-5.0, -5.0], [5.0, 5.0]), torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    )
    return mixture, ItemNoise(0, range(3000), (2,), torch.float64)


def heavy(x):
    return (x.sum(1) > 0).double().mean().item()


def test_plain_langevin_finds_the_wrong_weights(two_modes):
    """Modes far apart are found as often as their basins hold the start: half."""
    mixture, noise = two_modes
    sampler, model = Langevin(gamma=0.05, start="uniform", low=-8, high=8), Exact(OneLevel(1.0, 0.1), mixture)
    x = sampler.begin(model.sde, noise)
    x = sample(model, sampler, x, stay(300), draws(1, *x.shape)).x
    assert 0.45 < heavy(x) < 0.6
    assert (x.abs() - 5).abs().mean() < 1.2  # at the modes they are, with the right width


@pytest.mark.heavy
@pytest.mark.parametrize("start", ["uniform", "prior"])
def test_annealed_langevin_finds_the_right_weights(two_modes, start):
    mixture, noise = two_modes
    sde = VE(NCSN(L=20, sigma_min=0.1, sigma_max=20.0))
    sampler, model = AnnealedLangevin(0.1, 60, start=start, low=-8, high=8), Exact(sde, mixture)
    x = sampler.begin(sde, noise)
    x = sample(model, sampler, x, Levels()(sde, 19), draws(1, *x.shape)).x
    assert abs(heavy(x) - 0.8) < 0.03
    assert (x.abs() - 5).abs().mean() < 1.2


@pytest.mark.parametrize("path", [("vp", "cosine"), ("ve", "geometric")], ids=lambda p: p[0])
def test_annealed_langevin_follows_the_mixture(path):
    """Mean and covariance whether alpha changes or not, to what 60 levels of 10 steps leave."""
    mixture, n = mixture_2d(), 1500
    sde = build(*path)
    x = sample(
        Exact(sde, mixture),
        AnnealedLangevin(0.3, 10),
        sde.sample_prior(normal(0, n, 2)),
        UniformLam()(sde, 60),
        draws(3, n, 2),
    ).x
    truth, _ = mixture.sample(100_000, generator(1))
    assert (x.mean(0) - truth.mean(0)).abs().max() < 0.1
    assert (x.T.cov() - truth.T.cov()).abs().max() < 0.15


@pytest.mark.parametrize("start", ["uniform", "prior"])
def test_where_they_start(start):
    """Uniform on [low, high), or the prior's own noise; one level's prior is N(0, I)."""
    noise = ItemNoise(3, range(500), (2,), torch.float64)
    for sde in (build("ve", "geometric"), OneLevel(1.0, 0.0)):
        for kind in (Langevin, Mode, AnnealedLangevin):
            x = kind(start=start, low=-2, high=6).begin(sde, noise)
            if start == "prior":
                assert torch.equal(x, sde.prior_std * noise(0))
            else:
                assert x.min() >= -2 and x.max() < 6
                assert abs(x.mean() - 2) < 4 * (64 / 12 / 1000) ** 0.5
    assert OneLevel(1.0, 0.0).prior_std == 1


@every_path
@pytest.mark.parametrize("r", [0.5, 1.0, 1.99])
def test_no_mode_step_descends(sde, r):
    """log p_t + |x|^2/(2 sigma^2) is convex, so a step below 2 sigma^2 never loses."""
    model = Exact(sde, mixture_2d())
    for t in (f64(0.1)[0], f64(0.5)[0]):
        x = 3 * noised(sde, model.mixture, 200, t.item())
        for _ in range(3):
            y = sample(model, Mode(r, t=t.item()), x, stay(1), no_noise).x
            assert (model.log_prob(y, t) - model.log_prob(x, t) > -1e-9).all()
            x = y


def test_mode_with_r_1_is_the_mean_shift():
    sde = build("vp", "linear")
    model, x, t = Exact(sde, mixture_2d()), normal(0, 8, 2), f64(0.3)[0]
    shifted = sde.alpha(t) * model(x, t)
    assert torch.allclose(sample(model, Mode(t=0.3), x, stay(1), no_noise).x, shifted, rtol=1e-9)


def test_mode_ends_at_stationary_points():
    """Three of them, maxima, near the three means of a mixture whose modes are apart."""
    model = Exact(OneLevel(1.0, 0.1), mixture_2d())
    sampler = Mode(gamma=0.03, start="uniform", low=-3, high=3)
    x = sampler.begin(model.sde, ItemNoise(0, range(300), (2,), torch.float64))
    x = sample(model, sampler, x, stay(1500), no_noise).x
    assert model.score(x, f64(0.0)[0]).abs().max() < 1e-8
    modes = torch.unique(x.mul(1e5).round(), dim=0) / 1e5
    distance, nearest = torch.cdist(modes, model.mixture.means).min(1)
    assert sorted(nearest.tolist()) == [0, 1, 2] and distance.max() < 0.2
    around = modes[:, None] + 1e-2 * normal(1, 3, 20, 2)
    height = model.log_prob(modes, f64(0.0)[0])[:, None]
    assert (model.log_prob(around.view(-1, 2), f64(0.0)[0]).view(3, 20) < height).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Langevin(0.0), "r must lie between 0 and 2"),
        (lambda: Mode(2.0), "r must lie between 0 and 2"),
        (lambda: Langevin(gamma=0.0), "gamma must be above 0"),
        (lambda: AnnealedLangevin(start="data"), "start must be prior or uniform"),
        (lambda: Mode(low=1.0, high=1.0), "low must be below high"),
        (lambda: AnnealedLangevin(level_steps=0), "level_steps must be at least 1"),
        (lambda: Langevin(t=1.5).setup(Exact(build("vp", "linear"), UNIT)), "t must lie in"),
        (lambda: Langevin(t=0.5).setup(Exact(OneLevel(1.0, 0.1), UNIT)), "t must lie in"),
        (lambda: Langevin().setup(Exact(OneLevel(1.0, 0.0), UNIT)), "no noise to scale r with"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()
