"""Encoding is the PF-ODE's own map, and decoding its inverse, to the sampler's order; what lies between two items."""

import math
from functools import cache

import pytest
import torch
from cases import (
    build,
    every_path,
    f64,
    generator,
    level,
    mixture_2d,
    no_noise,
    normal,
    one_gaussian,
    paths,
    rotated,
)
from sampler_cases import ODE, SAMPLERS, make, over
from scipy.stats import kstest

from diffcli.diffusion.encoding import Encoding, check_both_ways
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Levels, UniformLam
from diffcli.diffusion.interpolation import angle, from_time, noised_between, slerp
from diffcli.diffusion.samplers import DPM3, RK45, Heun, sample
from diffcli.errors import NumericalError

PAIRS = [("vp", "linear"), ("ve", "geometric"), ("flow", "logit")]
FAST = ("ddim", "heun", "dpm2", "dpm3", "rk4-lam", "deis-rk", "unipc-rk", "abm")
WITHOUT_NOISE = ["dpmpp_2m_sde", "dpmpp_sde", "sa_solver", "euler_maruyama", "euler_ancestral", "reverse_diffusion"]


def on(pairs):
    return pytest.mark.parametrize("pair", [pytest.param(p, id="-".join(p)) for p in pairs])


def data(n, mixture, seed=0):
    return mixture.sample(n, generator(seed))[0]


@cache
def reference(pair):
    """The model, 12 items, and their latents to about 1e-9."""
    model = Exact(build(*pair), mixture_2d())
    x0 = data(12, model.mixture)
    return model, x0, Encoding(RK45(1e-10), UniformLam()(model.sde, 1)).encode(model, x0).x


def check_orders(pair, sampler):
    """Of the latent against the ODE's own, and of what comes back, as the steps are halved: the median item's."""
    if sampler.clock == "t" and build(*pair).times is not None:
        pytest.skip("a sampler that steps in t declares no order on a table")
    model, x0, true = reference(pair)
    latent, back = [], []
    for steps in (160, 320) if sampler.order < 3 else (80, 160):  # Euler in t on VE is not asymptotic before
        encoding = Encoding(sampler, UniformLam()(model.sde, steps))
        z, nfe = encoding.encode(model, x0)
        again, nfe_back = encoding.decode(model, z)
        assert nfe.tolist() == nfe_back.tolist() == [sampler.cost(steps)] * 12
        latent.append((z - true).norm(dim=1).median().item())
        back.append((again - x0).norm(dim=1).median().item())
    assert max(latent[-1], back[-1]) < {1: 0.15, 2: 2e-3, 3: 3e-4, 4: 3e-4}[sampler.order]
    for coarse, fine in (latent, back):
        if fine > 1e-8:
            assert math.log2(coarse / fine) > (
                1.6 if sampler.declared_for else {3: 2.6, 4: 3.3}.get(sampler.order, sampler.order - 0.15)
            )


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        pytest.param(pair, name, id=f"{pair[0]}-{name}")
        for pair in PAIRS
        for name in FAST
        if pair == PAIRS[0] or name in ("ddim", "dpm3", "unipc-rk")
    ],
)
def test_round_trip_converges_with_the_samplers_order(pair, name):
    check_orders(pair, SAMPLERS[name])


@pytest.mark.heavy
@over({name: sampler for name, sampler in ODE.items() if name not in FAST[1:]})
@on([*PAIRS, ("vp", "ddpm"), ("subvp", "linear"), ("vp", "cosine"), ("ve", "ncsn")])
def test_round_trip_converges_with_every_samplers_order(pair, sampler):
    check_orders(pair, sampler)


@over({name: s for name, s in SAMPLERS.items() if s.evaluations is None and s.kind == "ode"})
def test_a_sampler_with_its_own_steps_comes_back_to_its_tolerance(sampler):
    model = Exact(build("vp", "linear"), mixture_2d())
    x0, encoding = data(16, model.mixture), Encoding(sampler, UniformLam()(model.sde, 1))
    z, nfe = encoding.encode(model, x0)
    assert (encoding.decode(model, z).x - x0).abs().max() < 2e3 * sampler.solver.tol ** (
        1 if sampler.order > 3 else 0.9
    )
    assert nfe.min() > 1


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_samplers_that_are_written_one_way_say_so(name):
    """With eta = 0 they walk the ODE; up it either as well as down, or not at all, and then they are refused."""
    sampler, model = make(name, eta=0.0), Exact(build("vp", "linear"), mixture_2d())
    x0, times = data(8, model.mixture), UniformLam()(model.sde, 60)

    def walked():
        return sample(model, sampler, x0, times.flip(0), lambda counter: torch.zeros_like(x0), "stop").x

    if sampler.both_ways:
        assert (Encoding(sampler, times).decode(model, walked()).x - x0).norm(dim=1).median() < 5e-3
        return
    with pytest.raises(NumericalError, match="x is not finite, though the model's estimate is"):
        walked()
    with pytest.raises(ValueError, match="data alone"):
        check_both_ways(sampler)


@pytest.mark.parametrize("name", ["ancestral", "euler_maruyama", "dpmpp_2m_sde", "annealed_langevin", "langevin"])
def test_samplers_that_draw_noise_are_refused(name):
    with pytest.raises(ValueError, match="only an ODE"):
        Encoding(make(name), f64(1.0, 0.1))


def optimal(sde, gaussian, last):
    """The PF-ODE's map of one Gaussian from the time `last` to t_max, x -> A x + b in x0 and z."""
    (mean_s, cov_s), (mean_t, cov_t) = (level(gaussian, sde, t) for t in (last, f64(sde.t_max)[0]))
    axes = torch.linalg.eigh(gaussian.covs[0]).eigenvectors
    ratio = torch.diagonal(axes.T @ cov_t @ axes) / torch.diagonal(axes.T @ cov_s @ axes)
    a = axes @ torch.diag(ratio.sqrt()) @ axes.T * sde.alpha(last) / sde.prior_std
    return a, mean_t / sde.prior_std - a @ mean_s / sde.alpha(last)


@paths([("vp", "linear"), ("subvp", "linear"), ("ve", "edm"), ("vp", "ddpm"), ("flow", "logit"), ("ou",)])
def test_of_one_gaussian_it_is_the_closed_form(sde):
    check_closed_form(sde)


@pytest.mark.heavy
@every_path
def test_of_one_gaussian_it_is_the_closed_form_on_every_path(sde):
    check_closed_form(sde)


def check_closed_form(sde):
    """z = (mu_t + S_t^(1/2) S_s^(-1/2) (alpha_s x0 - mu_s)) / prior_std."""
    model, times = Exact(sde, one_gaussian()), UniformLam()(sde, 1)
    x0 = data(12, model.mixture)
    encoding = Encoding(RK45(1e-7), times)
    a, b = optimal(sde, model.mixture, times[-1])
    z = encoding.encode(model, x0).x
    assert (z - (x0 @ a.T + b)).abs().max() < 1e-4
    assert (encoding.decode(model, z).x - x0).abs().max() < 1e-4


def test_translation_is_the_composition_of_two_optimal_maps():
    """From one Gaussian under VP to another under VE, through the latents alone."""
    here = Exact(build("vp", "linear"), one_gaussian())
    there = Exact(build("ve", "geometric"), GaussianMixture(f64(1.0), f64([-2.0, 3.0]), rotated(-0.7, 2.0, 0.3)[None]))
    x0 = data(20, here.mixture)
    ways = [Encoding(DPM3(), UniformLam()(m.sde, 100)) for m in (here, there)]
    (a, b), (c, d) = (optimal(m.sde, m.mixture, w.times[-1]) for m, w in zip((here, there), ways, strict=True))
    found = ways[1].decode(there, ways[0].encode(here, x0).x).x
    assert (found - torch.linalg.solve(c, (x0 @ a.T + b - d).T).T).abs().max() < 1e-3


@on(PAIRS[::2])
def test_latents_of_noised_data_are_standard_normal(pair):
    """Under the exact model, for data at the last time with the noise that belongs there."""
    model, n = Exact(build(*pair), mixture_2d()), 1500
    x0 = data(n, model.mixture)
    encoding = Encoding(Heun("lam"), UniformLam()(model.sde, 100), noised=True)
    z = encoding.encode(model, x0, lambda name: normal(5, n, 2)).x
    assert z.mean(0).abs().max() < 4 / math.sqrt(n)
    assert (torch.cov(z.T) - torch.eye(2)).abs().max() < 4 * math.sqrt(2 / n)
    for angle_ in (0.0, 0.9, 1.8, 2.7):
        assert kstest((z @ f64(math.cos(angle_), math.sin(angle_))).numpy(), "norm").pvalue > 1e-3


def test_noised_data_enter_with_the_noise_of_the_last_time():
    """In one step of DDIM on one Gaussian x moves along `alpha x0 + sigma eps`: twice the noise, twice the difference."""
    model = Exact(build("vp", "linear"), one_gaussian())
    encoding = Encoding(SAMPLERS["ddim"], UniformLam()(model.sde, 1), noised=True)
    x0, eps = data(4, model.mixture), normal(3, 4, 2)
    none, one, two = (encoding.encode(model, x0, lambda name, k=k: k * eps).x for k in (0, 1, 2))
    assert torch.allclose(none, Encoding(encoding.sampler, encoding.times).encode(model, x0).x)
    assert torch.allclose(two - none, 2 * (one - none), atol=1e-10)
    assert (one - none).abs().max() > 1e-3


def test_denoising_at_the_end_is_the_posterior_mean_there():
    model = Exact(build("vp", "linear"), mixture_2d())
    times, z = UniformLam()(model.sde, 20), normal(0, 6, 2)
    stop, denoise = (Encoding(DPM3(), times, last=last).decode(model, z) for last in ("stop", "denoise"))
    assert torch.allclose(denoise.x, model(stop.x * model.sde.alpha(times[-1]), times[-1]))
    assert (denoise.nfe - stop.nfe).tolist() == [1] * 6


class Free(Exact):
    """A field without a posterior mean."""

    posterior_mean = False


def test_the_data_of_a_free_field_enter_as_they_are():
    sde = build("flow", "logit")
    times, x0 = UniformLam()(sde, 30), normal(0, 5, 2)
    z = Encoding(DPM3(), times).encode(Free(sde, mixture_2d()), x0).x
    scaled = Encoding(DPM3(), times).encode(Exact(sde, mixture_2d()), x0 / sde.alpha(times[-1])).x
    assert torch.allclose(z, scaled)
    with pytest.raises(ValueError, match="free field"):
        Encoding(DPM3(), times, noised=True).setup(Free(sde, mixture_2d()))


# between two items


def test_slerp_is_exact_at_its_ends():
    a, b = normal(0, 50, 1, 4, 4), 3 * normal(1, 50, 1, 4, 4)
    for w, end in ((0.0, a), (1.0, b)):
        assert torch.equal(slerp(a, b, torch.full((50,), w, dtype=torch.float64)), end)
        assert torch.equal(slerp(a.float(), b.float(), torch.full((50,), w)), end.float())


def test_slerp_goes_along_the_great_circle_at_constant_speed():
    """Its length is linear, kept where both are as long; its angle to a is w of the whole; it stays in their plane."""
    a, b = normal(0, 40, 7), normal(1, 40, 7)
    w = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    c = slerp(a, b, w)
    assert torch.allclose(c.norm(dim=1), (1 - w) * a.norm(dim=1) + w * b.norm(dim=1))
    assert torch.allclose(angle(a, c), w * angle(a, b))
    assert torch.allclose(angle(a, c) + angle(c, b), angle(a, b))
    even = slerp(a, b / b.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True), w)
    assert torch.allclose(even.norm(dim=1), a.norm(dim=1))


@pytest.mark.parametrize("factor", [1.0, 2.5, 1 + 1e-9, -1.0, -0.5, 0.0])
def test_slerp_of_what_makes_no_plane_is_the_line(factor):
    a, w = normal(0, 5, 3), torch.linspace(0, 1, 5, dtype=torch.float64)
    b = factor * a
    assert torch.allclose(slerp(a, b, w), (1 - w)[:, None] * a + w[:, None] * b, atol=1e-12)


@pytest.mark.parametrize("degrees", [1e-3, 0.5, 179.0, 179.99])
def test_slerp_holds_at_small_and_large_angles(degrees):
    turn, half = math.radians(degrees), math.radians(degrees / 2)
    a, b = f64([2.0, 0.0]), f64([2 * math.cos(turn), 2 * math.sin(turn)])
    expected = f64([2 * math.cos(half), 2 * math.sin(half)])
    assert torch.allclose(slerp(a, b, f64(0.5)), expected, atol=1e-9)
    assert angle(a, b).item() == pytest.approx(degrees, rel=1e-9)


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_a_mix_has_the_noise_of_its_time(kind):
    """x_t - alpha ((1 - w) a + w b) has the deviation sigma at every w, which a line between two noised items has not."""
    sde, n = build("vp", "linear"), 20000
    t, w = f64(0.4)[0], torch.full((20000,), 0.5, dtype=torch.float64)
    a, b = (one.expand(n, 2) for one in (f64(3.0, -1.0), f64(-2.0, 2.0)))
    noises = {"mix a": normal(1, n, 2), "mix b": normal(2, n, 2)}
    x = noised_between(sde, a, b, w, t, noises.get, kind)
    centre = sde.alpha(t) * f64(0.5, 0.5)
    assert ((x - centre).mean(0) / sde.sigma(t)).abs().max() < 4 / math.sqrt(n)
    # |eps(w)| lies between |a| and |b|: in 2 dimensions its mean square is a little below theirs
    square = (x - centre).square().mean().item() / sde.sigma(t).item() ** 2
    assert square == pytest.approx(1.0, abs=0.03) if kind == "shared" else 0.8 < square < 1.0
    with pytest.raises(ValueError, match="shared or own"):
        noised_between(sde, a, b, w, t, noises.get, "both")


def test_own_noise_in_many_dimensions_keeps_its_size():
    sde, t, w = build("vp", "linear"), f64(0.4)[0], torch.full((50,), 0.5, dtype=torch.float64)
    noises = {"mix a": normal(1, 50, 500), "mix b": normal(2, 50, 500)}
    x = noised_between(sde, torch.zeros(50, 500).double(), torch.zeros(50, 500).double(), w, t, noises.get, "own")
    assert (x / sde.sigma(t)).square().mean().item() == pytest.approx(1.0, abs=0.03)


def test_drawn_anew_the_ends_follow_the_posterior():
    """At w = 0 of one Gaussian: x0 | a has mean m + K alpha (a - m), covariance C - K alpha C + sigma^2 K K^T."""
    sde, gaussian, n = build("vp", "linear"), one_gaussian(), 4000
    model, times = Exact(sde, gaussian), from_time(UniformLam()(sde, 60), 0.3)
    noise = {name: normal(i, n, 2) for i, name in enumerate(["mix a", *range(1, len(times))])}
    a = f64(1.5, 0.2)
    xt = noised_between(sde, a.expand(n, 2), torch.zeros(n, 2).double(), torch.zeros(n), times[0], noise.get)
    x = sample(model, make("dpmpp_2m_sde"), xt, times, noise.get, "denoise").x
    alpha, sigma = sde.alpha(times[0]), sde.sigma(times[0])
    mean, cov = gaussian.means[0], gaussian.covs[0]
    k = alpha * cov @ torch.linalg.inv(level(gaussian, sde, times[0])[1])
    expected = cov - alpha * k @ cov + sigma**2 * k @ k.T
    assert ((x.mean(0) - mean - alpha * k @ (a - mean)) / expected.diag().sqrt()).abs().max() < 4.5 / math.sqrt(n)
    assert (torch.cov(x.T) - expected).abs().max() < 5 * math.sqrt(2 / n) * expected.diag().max()


def test_from_little_noise_nothing_changes():
    sde, w = build("vp", "linear"), f64(0.0, 0.25, 0.5, 1.0)
    model, a, b = Exact(sde, mixture_2d()), normal(0, 1, 2).expand(4, 2), normal(1, 1, 2).expand(4, 2)
    apart = []
    for t in (0.02, 0.005, 1.1e-3):
        times = from_time(UniformLam()(sde, 100), t)
        xt = noised_between(sde, a, b, w, times[0], lambda name: normal(3, 4, 2))
        x = sample(model, make("ancestral"), xt, times, lambda i: normal(9 + i, 4, 2), "stop").x
        apart.append((x - (1 - w)[:, None] * a - w[:, None] * b).abs().max().item())
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 0.06  # sigma(1e-3) is 0.014


def test_a_grid_from_t_is_its_own_part_below():
    sde = build("vp", "linear")
    times = UniformLam()(sde, 50)
    part = from_time(times, 0.3)
    assert part[0] == 0.3
    assert torch.equal(part[1:], times[times < 0.3])
    assert torch.equal(from_time(times, times[0].item()), times)
    for t in (times[-1].item(), 0.0, 1.5):
        with pytest.raises(ValueError, match="t must lie above"):
            from_time(times, t)
    levels = Levels()(build("vp", "ddpm"), 100)
    assert (from_time(levels, 0.5).diff() < 0).all()


def test_no_noise_is_asked_for_without_noised():
    model = Exact(build("vp", "linear"), mixture_2d())
    Encoding(DPM3(), UniformLam()(model.sde, 2)).encode(model, normal(0, 2, 2), no_noise)
