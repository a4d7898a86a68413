"""The closed-form kernel estimator: its linear system by automatic differentiation, its minimiser, a Gaussian's score."""

import pytest
import torch
from cases import build, f64, generator, mixture_2d, normal, one_gaussian

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.kernel import Features, Kernel, solve
from diffcli.diffusion.loss import TrainingSet
from diffcli.diffusion.sde import OneLevel

X, C, H = normal(0, 30, 2), normal(1, 7, 2), 0.8


def fitted(sde, items, **settings):
    model = Kernel(sde, list(items.shape[1:]), len(items), **settings)
    return model, model.fit(TrainingSet(lambda: items, tuple(items.shape[1:])))


def relative_error(model, truth, t, n=4000):
    x0 = truth.mixture.sample(n, generator(9))[0]
    xt = truth.sde.perturb(x0, t, normal(8, n, 2))
    exact = truth.score(xt, t)
    return ((model.score(xt, t) - exact).square().sum() / exact.square().sum()).sqrt().item()


def test_gram_and_trace_are_those_of_the_kernels_gradients():
    """G_jl = mean grad k_j . grad k_l and b_j = mean Laplacian k_j, both by differentiating k itself."""
    x = X.clone().requires_grad_()
    k = torch.exp(-0.5 * (x[:, None] - C).square().sum(2) / H**2)
    gradients, laplacians = [], []
    for j in range(len(C)):
        (g,) = torch.autograd.grad(k[:, j].sum(), x, create_graph=True)
        second = [torch.autograd.grad(g[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
        gradients.append(g.detach())
        laplacians.append(sum(second))
    f = torch.stack(gradients, 1)  # (N, M, d)
    features = Features(X, C, H)
    assert torch.allclose(features.gram(), torch.einsum("njd,nld->jl", f, f) / len(X), rtol=1e-10, atol=1e-13)
    assert torch.allclose(features.trace(), torch.stack(laplacians, 1).mean(0), rtol=1e-10)
    a = normal(2, 7)
    assert torch.allclose(features.score(a), torch.einsum("njd,j->nd", f, a), rtol=1e-10)
    expected = (torch.stack(laplacians, 1) @ a + 0.5 * features.score(a).square().sum(1)).mean()
    assert torch.allclose(features.loss(a), expected, rtol=1e-10)


def test_the_solve_is_the_minimiser_of_the_regularised_loss():
    """The gradient of 1/2 a^T G a + a^T b + 1/2 mu ||a||^2 is 0 there, and any step away raises it."""
    features, relative = Features(X, C, H), f64(1e-1, 1e-4)
    mu, found = solve(features.gram(), features.trace(), relative)
    assert torch.allclose(mu, relative * torch.linalg.eigvalsh(features.gram()).max())
    for ridge, a in zip(mu, found, strict=True):
        a = a.clone().requires_grad_()
        value = features.loss(a) + 0.5 * ridge * a @ a
        (gradient,) = torch.autograd.grad(value, a)
        assert gradient.abs().max() < 1e-9 * features.trace().abs().max()
        moved = a.detach() + 0.01 * normal(3, 7)
        assert features.loss(moved) + 0.5 * ridge * moved @ moved > value


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_recovers_a_gaussians_score_at_one_level(sigma):
    truth = Exact(OneLevel(0.9, max(sigma, 1e-6)), one_gaussian())
    items = one_gaussian().sample(3000, generator(0))[0]
    model, found = fitted(OneLevel(0.9, sigma), items, centres=100)
    assert found["levels"] == 1
    assert relative_error(model, truth, f64(0.0)[0]) < 0.10
    assert relative_error(model, Exact(truth.sde, mixture_2d()), f64(0.0)[0]) > 0.5  # it is no law about every density


def test_recovers_a_mixtures_score_across_the_levels():
    """To a tenth where noise smooths it, to what 100 kernels can where it does not; between two fitted levels, where it is
    interpolated in lam, no worse than at them."""
    sde = build("vp", "linear", t_min=1e-2)
    model, _ = fitted(sde, mixture_2d().sample(4000, generator(0))[0], centres=100, levels=7)
    truth = Exact(sde, mixture_2d())
    lam = torch.log(model.alpha) - torch.log(model.sigma)
    assert (lam.diff() > 0).all() and torch.allclose(lam.diff(), lam.diff()[0], rtol=1e-6)
    at, between = ([relative_error(model, truth, sde.time(a)) for a in x] for x in (lam, (lam[1:] + lam[:-1]) / 2))
    assert max(at[:4]) < 0.12 and max(at) < 0.35, at
    for low, middle, high in zip(at[:-1], between, at[1:], strict=True):
        assert middle < 1.25 * max(low, high), (at, between)


def quick(sde, d=2, levels=4):
    items = mixture_2d().sample(60, generator(1))[0]
    return fitted(sde, items[:, :d], centres=20, levels=levels, bandwidth=1.0, ridge=1e-4)[0]


def test_interpolation_meets_the_fitted_levels_and_is_linear_in_lam_in_units_of_the_datas_size():
    sde = build("ve", "geometric")
    model = quick(sde)
    lam = torch.log(model.alpha) - torch.log(model.sigma)

    def scaled(at):
        """size * score at x = alpha m + size * u."""
        t = sde.time(at)
        size = torch.sqrt((sde.alpha(t) * model.spread) ** 2 + sde.sigma(t) ** 2)
        return size * model.score(model.middle + size * u, t)

    u = normal(4, 5, 2)
    for i in range(3):
        below, above = scaled(lam[i]), scaled(lam[i + 1])
        own = Features(u, model._centres(i), model.width[i].item()).score(model.coefficients[i])
        assert torch.allclose(below, own, rtol=1e-6, atol=1e-9)
        assert torch.allclose(
            scaled(0.75 * lam[i] + 0.25 * lam[i + 1]), 0.75 * below + 0.25 * above, rtol=1e-6, atol=1e-9
        )


def test_each_item_may_have_its_own_time():
    sde = build("vp", "cosine")
    model, x = quick(sde), normal(5, 9, 2)
    t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
    one_by_one = torch.cat([model(x[i : i + 1], t[i]) for i in range(9)])
    assert torch.allclose(model(x, t), one_by_one, rtol=1e-10)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.score(y, t)[:, 0].sum(), y)
    step = torch.zeros_like(x)
    step[:, 0] = 1e-6
    difference = (model.score(x + step, t) - model.score(x - step, t))[:, 0] / 2e-6
    assert torch.allclose(gradient[:, 0], difference, rtol=1e-4, atol=1e-6)


def test_bandwidth_and_ridge_are_the_best_on_held_out_items():
    """Of a fit that may choose, the held-out loss is no larger than of fits that may not."""
    sde, items = OneLevel(1.0, 0.3), mixture_2d().sample(400, generator(0))[0]
    _, free = fitted(sde, items, centres=40)
    losses = []
    for bandwidth, ridge in ((2.0, 1e-2), (0.25, 1e-6), (1.0, 1e-4)):
        _, found = fitted(sde, items, centres=40, bandwidth=bandwidth, ridge=ridge)
        losses.append(found["held_out_ism"][0])
        assert found["bandwidth"] == [pytest.approx(bandwidth * 2**0.5)]
    assert free["held_out_ism"][0] <= min(losses) + 1e-12
    assert max(losses) > free["held_out_ism"][0] + 0.05


def test_the_choice_is_made_on_items_that_were_not_fitted():
    """Of 30 items and 30 kernels the least ridge fits best what was fitted, and not what was not."""
    x, held = normal(0, 30, 2), normal(1, 200, 2)
    model = Kernel(OneLevel(1.0, 0.3), [2], 60, bandwidth=0.25)
    loss, h, _, a = model._fit_level(x, held, x)
    every = solve(Features(x, x, h).gram(), Features(x, x, h).trace(), f64(*model.tried[1]))[1]
    fitted_best, held_best = (
        min(range(len(every)), key=lambda i, of=of: Features(of, x, h).loss(every[i]).item()) for of in (x, held)
    )
    assert fitted_best != held_best
    assert torch.equal(a, every[held_best])
    assert loss == pytest.approx(Features(held, x, h).loss(a).item(), rel=1e-12)


def test_the_same_seed_gives_the_same_fit_and_casts_lose_nothing():
    sde = build("vp", "linear")
    a, b = quick(sde), quick(sde)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    again = Kernel(sde, [2], 60, centres=20, levels=4)
    again.float().load_state_dict(a.state_dict())
    x, t = normal(6, 5, 2), f64(0.3)[0]
    assert torch.equal(again.score(x, t), a.score(x, t))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(centres=0), "centres"),
        (dict(levels=1), "levels must be at least 2"),
        (dict(bandwidth=0.0), "bandwidth must be above 0"),
        (dict(ridge=-1.0), "ridge must be above 0"),
        (dict(n=1), "at least 2"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(ValueError, match=words):
        Kernel(build("vp", "linear"), [2], **{"n": 10, **settings})


def test_data_that_do_not_vary_are_refused():
    with pytest.raises(ValueError, match="do not vary"):
        fitted(build("vp", "linear"), torch.ones(10, 2, dtype=torch.float64))
