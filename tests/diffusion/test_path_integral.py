"""The log-density from a score alone: the exact mixture's, whatever the path, the level, the batch and the start."""

import math

import pytest
import torch
from cases import OWN, SDES, Shifted, Twice, build, f64, mixture_2d, mixture_of, normal, one_gaussian, paths
from torch import nn

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.likelihood.line_integral import GAUSS, KRONROD, NODES, line_integral
from diffcli.diffusion.likelihood.on_grid import normaliser
from diffcli.diffusion.likelihood.path_integral import PathIntegral
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.prediction import Velocity
from diffcli.diffusion.sde import OneLevel

FEW = paths([("vp", "linear"), ("subvp", "linear"), ("ve", "geometric"), ("flow", "logit"), ("ou",)])


def mixture_1d() -> GaussianMixture:
    """Two modes with a deep valley between them."""
    return GaussianMixture(f64(0.7, 0.3), f64([2.0], [-1.5]), f64([[0.01]], [[0.04]]))


def found(model, x, data, **settings):
    """What it finds for x, of a model and the items that it is told of."""
    likelihood = PathIntegral(**settings)
    likelihood.setup(model, TrainingSet(lambda: data, tuple(data.shape[1:])))
    return likelihood, likelihood(model, x, None)


def items(mixture, n=400, seed=0):
    return mixture.sample(n, torch.Generator().manual_seed(seed))[0]


def truth(sde, mixture, x, t=None):
    """log of the density of x0 + (sigma/alpha) eps."""
    t = f64(sde.t_min if t is None else t)[0]
    return mixture.log_prob(x, 1.0, sde.sigma(t) / sde.alpha(t))


def test_the_rules_are_exact_for_polynomials():
    """Kronrod's 15 points to degree 22, Gauss's 7 among them to 13, and no further."""
    for k in range(23):
        whole = 0 if k % 2 else 2 / (k + 1)
        assert (KRONROD @ NODES**k).item() == pytest.approx(whole, abs=1e-14)
        assert k > 13 or (GAUSS @ NODES**k).item() == pytest.approx(whole, abs=1e-14)
    assert abs((KRONROD @ NODES**24).item() - 2 / 25) > 1e-12 and abs((GAUSS @ NODES**14).item() - 2 / 15) > 1e-6


@FEW
@pytest.mark.parametrize("mixture", [mixture_1d(), mixture_2d()], ids=["1d", "2d"])
def test_it_is_the_density_of_the_exact_mixture(sde, mixture):
    """Normalised on the grid, also where a valley lies between the start and the item; its own error covers what is left."""
    x = items(mixture)
    likelihood, got = found(Exact(sde, mixture), x[:40], x, grid=96)
    assert likelihood.normalised
    off = (got.log_prob - truth(sde, mixture, x[:40])).abs()
    assert off.max() < 1e-4
    assert (off <= got.solver_err + 1e-6).all() and got.solver_err.max() < 1e-3
    assert torch.equal(got.std_err, torch.zeros(40))


@pytest.mark.parametrize("t", [0.05, 0.3])
@FEW
def test_another_level_is_the_density_of_the_data_with_that_noise(sde, t):
    mixture = mixture_2d()
    x = items(mixture)
    _, got = found(Exact(sde, mixture), x[:20], x, t=t, grid=64)
    assert torch.allclose(got.log_prob, truth(sde, mixture, x[:20], t), rtol=0, atol=1e-4)


def test_in_more_dimensions_differences_are_right_and_it_is_not_normalised():
    sde, mixture = build("vp", "linear"), mixture_of(16)
    x = items(mixture, 30)
    likelihood, got = found(Exact(sde, mixture), x, x)
    assert not likelihood.normalised and likelihood.findings() == {}
    exact = truth(sde, mixture, x)
    assert torch.allclose(got.log_prob - got.log_prob[0], exact - exact[0], rtol=0, atol=1e-4)
    centre = truth(sde, mixture, x.mean(0)[None])
    assert torch.allclose(got.log_prob, exact - centre, rtol=0, atol=1e-4)


def test_an_image_is_its_flat_item():
    sde, mixture = build("ve", "geometric"), mixture_of(12)
    x = items(mixture, 6)
    _, flat = found(Exact(sde, mixture), x, x)
    _, image = found(Exact(sde, mixture), x.view(6, 3, 2, 2), x.view(6, 3, 2, 2))
    assert torch.allclose(flat.log_prob, image.log_prob, rtol=1e-10)


def test_the_start_does_not_matter_once_it_is_normalised():
    sde, mixture = build("vp", "linear"), mixture_2d()
    x = items(mixture)
    _, a = found(Exact(sde, mixture), x[:20], x, grid=64)
    _, b = found(Exact(sde, mixture), x[:20], x, grid=64, reference=[1.5, -0.5])
    assert torch.allclose(a.log_prob, b.log_prob, rtol=0, atol=1e-4)


def test_one_level_needs_no_process():
    """The only level of the model, also without noise: there the score is that of the data."""
    mixture = mixture_2d()
    x = items(mixture)
    for sde in (OneLevel(0.8, 0.3), OneLevel(1.0, 0.0)):
        likelihood, got = found(Exact(sde, mixture), x[:20], x, grid=64)
        assert not likelihood.needs_process
        assert torch.allclose(got.log_prob, truth(sde, mixture, x[:20]), rtol=0, atol=1e-4)


def test_paths_part_where_the_score_is_no_gradient():
    """Of `s + size (sin x_2, 1/2 + cos x_1)/sigma`, whose two line integrals are known by hand."""
    sde, mixture, size = OneLevel(1.0, 0.5), mixture_2d(), 0.3
    x = items(mixture, 50)
    start = [0.2, -0.1]
    _, got = found(Exact(sde, mixture), x, x, grid=0, reference=start, tol=1e-9)
    assert got.path_gap.max() < 1e-7
    _, got = found(Shifted(sde, mixture, size), x, x, grid=0, reference=start, tol=1e-9)
    (p, q), (dx, dy) = start, (x - f64(*start)).T
    straight = dx / dy * (math.cos(q) - torch.cos(x[:, 1])) + dy * 0.5 + dy / dx * (torch.sin(x[:, 0]) - math.sin(p))
    bent = dx * math.sin(q) + dy * (0.5 + torch.cos(x[:, 0]))
    assert torch.allclose(got.path_gap, size / 0.5 * (straight - bent).abs(), rtol=1e-6, atol=1e-6)
    exact = truth(sde, mixture, x) - truth(sde, mixture, f64(start))
    assert torch.allclose(got.log_prob, exact + size / 0.5 * straight, rtol=1e-6, atol=1e-6)
    _, one = found(Shifted(sde, mixture, size), x, x, grid=0, reference=start, tol=1e-9, bent=False)
    assert torch.equal(one.log_prob, got.log_prob) and one.path_gap.isnan().all()
    assert (one.nfe < got.nfe).all()


def test_evaluations_are_the_networks():
    """Two panels a leg for a linear score, which needs no halving; twice that where the denoiser asks twice."""
    sde, mixture = build("vp", "linear"), one_gaussian()
    x = items(mixture, 1)
    model = Exact(sde, mixture)
    likelihood = PathIntegral(grid=0, reference=[0.0, 0.0])
    likelihood.setup(model, TrainingSet(lambda: x, (2,)))
    assert likelihood(model, x, None).nfe.item() == model.rows == 15 * (2 + 4)
    assert likelihood(Twice(Exact(sde, mixture)), x, None).nfe.item() == 2 * 15 * (2 + 4)


def test_evaluations_of_halvings():
    """Sixteen times the same item: a batch that needs no padding, so that every row is an item's own."""
    sde, mixture = build("vp", "linear"), mixture_1d()
    x, model = f64([2.0]).expand(16, 1), Exact(sde, mixture)
    _, got = found(model, x, x, grid=0, reference=[-1.5])
    assert got.nfe.tolist() == [model.rows / 16] * 16 and got.nfe[0] > 60


def test_the_solvers_error_has_the_normalisers_in_it():
    sde, mixture = build("vp", "linear"), mixture_1d()
    x = items(mixture)
    likelihood, got = found(Exact(sde, mixture), x[:5], x, grid=4)
    assert (got.solver_err > likelihood.findings()["log_normaliser_error"]).all() and got.solver_err.min() > 1e-2


def test_what_is_left_when_the_evaluations_end_is_said():
    sde, mixture = build("vp", "linear"), mixture_1d()
    x = items(mixture)
    settings = dict(grid=0, reference=[-1.5], tol=1e-8)
    _, enough = found(Exact(sde, mixture), x[:20], x, **settings)
    _, few = found(Exact(sde, mixture), x[:20], x, max_nfe=60, **settings)
    exact = truth(sde, mixture, x[:20]) - truth(sde, mixture, f64([-1.5]))
    assert (few.nfe <= 60).all() and (enough.nfe > 60).any()
    assert (enough.log_prob - exact).abs().max() < 1e-6 and enough.solver_err.max() < 1e-5
    off = (few.log_prob - exact).abs()
    assert off.max() > 1e-4 and (off <= few.solver_err + 1e-6).all()


def test_an_item_does_not_depend_on_its_batch():
    sde, mixture = build("vp", "linear"), mixture_2d()
    x = items(mixture, 48)
    settings = dict(reference=[0.0, 0.0], grid=0)
    _, whole = found(Exact(sde, mixture), x.float(), x, **settings)
    _, part = found(Exact(sde, mixture), x[16:32].float(), x, **settings)
    assert torch.equal(part.log_prob, whole.log_prob[16:32]) and torch.equal(part.nfe, whole.nfe[16:32])


def test_float32_states_follow_float64_ones():
    sde, mixture = build("vp", "linear"), mixture_2d()
    x = items(mixture)
    _, single = found(Exact(sde, mixture), x[:30].float(), x, grid=64)
    assert single.log_prob.dtype == torch.float64
    assert (single.log_prob - truth(sde, mixture, x[:30])).abs().max() < 1e-3


def test_the_normalisers_error():
    """Of one Gaussian: nothing to see on a fine grid, much on a coarse one, and what lies beyond the box is noticed."""

    def log_p(x):
        return -0.5 * x.square().sum(1)

    for box, n, least, most in ((8.0, 64, 0.0, 1e-9), (8.0, 6, 0.01, 5.0), (1.0, 64, 0.01, 5.0)):
        z = normaliser(log_p, f64([-box, -box], [box, box]), n)
        assert abs(z.log_z - math.log(2 * math.pi)) <= most and least <= z.error <= most and z.points == (n + 1) ** 2
    narrow = normaliser(lambda x: log_p(x / 0.1), f64([-8.0, -8.0], [8.0, 8.0]), 64)  # between the points
    assert 0.5 < narrow.error < 5
    far = normaliser(lambda x: log_p(x - 1000.0) - 5000.0, f64([992.0], [1008.0]), 64)  # nothing under- or overflows
    assert far.log_z == pytest.approx(0.5 * math.log(2 * math.pi) - 5000)


def test_the_line_integral_of_a_gradient_along_any_corners():
    x = [normal(k, 7, 3) for k in range(4)]
    got = line_integral(lambda x: torch.cos(3 * x), x, 1e-10, 5000)
    exact = (torch.sin(3 * x[-1]) - torch.sin(3 * x[0])).sum(1) / 3
    assert torch.allclose(got.value, exact, rtol=0, atol=1e-9) and got.error.max() < 1e-8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(tol=0.0), "tol must lie"),
        (dict(max_nfe=59), "max_nfe must be at least 60"),
        (dict(grid=7), "grid must be even"),
        (dict(grid=-2), "grid must be even"),
        (dict(t=2.0), "t must lie in"),
        (dict(t=0.0), "t must lie in"),
        (dict(reference=[1.0]), "reference must have 2 numbers, got 1"),
    ],
)
def test_refusals(settings, words):
    sde, mixture = build("vp", "linear"), mixture_2d()
    x = items(mixture, 10)
    with pytest.raises(ValueError, match=words):
        found(Exact(sde, mixture), x, x, **settings)


def test_a_free_field_has_no_score():
    sde = build("flow", "logit")
    with pytest.raises(ValueError, match="likelihood=ode"):
        found(Velocity(sde, nn.Identity(), free=True), torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.heavy
@paths([(s, c) for s in SDES for c in ("linear", "cosine", "edm", "ddpm")] + [(s,) for s in OWN])
def test_it_is_the_density_on_every_path(sde):
    mixture = mixture_2d()
    x = items(mixture)
    for t in (None, 0.3):
        _, got = found(Exact(sde, mixture), x[:40], x, t=t)
        assert torch.allclose(got.log_prob, truth(sde, mixture, x[:40], t), rtol=0, atol=1e-4)
