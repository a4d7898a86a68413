"""Denoising score matching: its value, its minimiser, and explicit score matching but for a constant."""

import pytest
import torch
from cases import Recorder, Shifted, build, every_path, f64, generator, mixture_2d, normal

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.loss import DSM
from diffcli.diffusion.weighting import WEIGHTS
from diffcli.randomness import Draw

every_weight = pytest.mark.parametrize("weight", WEIGHTS)
levels = [pytest.param(build(*p, t_min=0.2), id="-".join(p)) for p in [("vp", "linear"), ("subvp", "cosine")]]
levels.append(pytest.param(build("ve", "geometric", t_min=0.3), id="ve-geometric"))
three_paths = pytest.mark.parametrize("sde", levels)  # where 1/sigma^2 is moderate, so that means are soon known


def data(n, seed=0):
    return mixture_2d().sample(n, generator(seed))[0]


def other_mixture():
    true = mixture_2d()
    return GaussianMixture(true.weights.flip(0), 0.9 * true.means + 0.1, 1.2 * true.covs)


def evaluate(weight, model, x0, draw):
    """The loss of each item, and the (xt, t) at which it was taken."""
    recorder = Recorder(model)
    losses = DSM(weight)(recorder, x0, draw)
    ((xt, t),) = recorder.calls
    return losses, xt, t


def z_score(a):
    return (a.mean() / (a.std() / len(a) ** 0.5)).item()


@every_weight
@every_path
def test_value_at_one_draw(sde, weight):
    """1/2 w ||s + eps/sigma||^2 with w = sigma^2, g^2, 1; for "simple" also 1/2 ||eps_theta - eps||^2."""
    x0, model = data(60), Shifted(sde, mixture_2d(), 0.3)
    losses, xt, t = evaluate(weight, model, x0, Draw(0, 0))
    keep = sde.sigma(t) > 1e-4  # where eps can be read back from xt
    losses, xt, t, x0 = losses[keep], xt[keep], t[keep], x0[keep]
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    eps = (xt - alpha * x0) / sigma
    bracket = (model.score(xt, t) + eps / sigma).square().sum(1)
    w = {"simple": sigma[:, 0] ** 2, "likelihood": sde.g2(t), "uniform": torch.ones_like(t)}[weight]
    assert losses.shape == (len(t),)
    assert torch.allclose(losses, 0.5 * w * bracket, rtol=1e-8, atol=1e-10)
    if weight == "simple":
        assert torch.allclose(losses, 0.5 * (model.eps(xt, t) - eps).square().sum(1), rtol=1e-8, atol=1e-10)


@every_path
def test_noise_is_standard_and_apart_from_the_time(sde):
    x0 = torch.zeros(4000, 2, dtype=torch.float64)
    _, xt, t = evaluate("simple", Exact(sde, mixture_2d()), x0, Draw(0, 0))
    eps = xt / sde.sigma(t)[:, None]
    assert eps.mean(0).abs().max() < 0.06 and (torch.cov(eps.T) - torch.eye(2)).abs().max() < 0.08
    u = (t - t.mean()) / t.std()
    assert (u[:, None] * eps).mean(0).abs().max() < 0.06 and (u[:, None] * eps**2).mean(0).abs().max() < 0.1


@every_weight
@three_paths
def test_the_exact_score_is_the_minimiser(sde, weight):
    """On the same draws every perturbed denoiser has the larger mean, and the derivative at the exact one is 0."""
    x0, draw = data(20_000), Draw(0, 0)
    best = evaluate(weight, Exact(sde, mixture_2d()), x0, draw)[0]
    plus = evaluate(weight, Shifted(sde, mixture_2d(), 0.2), x0, draw)[0]
    minus = evaluate(weight, Shifted(sde, mixture_2d(), -0.2), x0, draw)[0]
    assert z_score(plus - best) > 4 and z_score(minus - best) > 4
    assert abs(z_score(plus - minus)) < 4  # a quadratic's central difference is its derivative
    assert z_score(evaluate(weight, Exact(sde, other_mixture()), x0, draw)[0] - best) > 4


@every_weight
@three_paths
def test_differs_from_explicit_score_matching_by_a_constant(sde, weight):
    """J_DSM(a) - J_DSM(b) = J_ESM(a) - J_ESM(b), ESM = 1/2 w ||s - grad log p_t||^2."""
    x0, draw, w = data(20_000), Draw(0, 1), WEIGHTS[weight]
    true = Exact(sde, mixture_2d())
    a, b = Shifted(sde, mixture_2d(), 0.4), Exact(sde, other_mixture())
    loss_a, xt, t = evaluate(weight, a, x0, draw)
    loss_b = evaluate(weight, b, x0, draw)[0]

    def explicit(model):
        return 0.5 * w(sde, t) * (model.score(xt, t) - true.score(xt, t)).square().sum(1)

    dsm, esm = loss_a - loss_b, explicit(a) - explicit(b)
    assert abs(z_score(dsm - esm)) < 4
    assert abs(z_score(esm)) > 10  # it is no law about zero


@every_weight
def test_the_same_draw_gives_the_same_loss(weight):
    model, x0 = Exact(build("vp", "linear"), mixture_2d()), data(30)
    loss = DSM(weight)
    assert torch.equal(loss(model, x0, Draw(0, 1)), loss(model, x0, Draw(0, 1)))
    for other in (Draw(1, 1), Draw(0, 2), Draw(0, 1, rank=1)):
        assert not torch.equal(loss(model, x0, Draw(0, 1)), loss(model, x0, other))


def test_sums_over_event_dimensions_of_any_shape():
    """An image is its pixels: the loss of (B, 2) and of (B, 1, 2, 1) are the same number."""
    model, x0 = Exact(build("vp", "linear"), mixture_2d()), data(30)
    loss = DSM()
    flat = loss(model, x0, Draw(0, 0))
    assert torch.allclose(loss(model, x0.view(30, 1, 2, 1), Draw(0, 0)), flat, rtol=1e-12)


def test_float32_in_float32_out():
    losses = DSM("likelihood")(Exact(build("vp", "linear"), mixture_2d()), data(30).float(), Draw(0, 0))
    assert losses.dtype == torch.float32 and torch.isfinite(losses).all()


@pytest.mark.parametrize("weight", WEIGHTS)
@every_path
def test_weights_are_their_formulas(sde, weight):
    t = f64(0.1, 0.5, 0.9)
    published = {
        "simple": sde.sigma(t) ** 2,
        "likelihood": -2 * sde.sigma(t) ** 2 * sde.dlam(t),
        "uniform": f64(1, 1, 1),
    }
    assert torch.allclose(WEIGHTS[weight](sde, t), published[weight], rtol=1e-12)


def test_noise_prediction_network_gets_a_gradient():
    from diffcli.diffusion.prediction import Eps

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x, c):
            return self.w * x

    model, x0 = Eps(build("vp", "linear"), Scale()), normal(0, 5000, 2)
    (grad,) = torch.autograd.grad(DSM()(model, x0, Draw(0, 0)).mean(), model.network.w)
    # data N(0, I) under VP: the best network is eps = sigma x, and dL/dw = E[x (w x - eps)] = 2 (w - E sigma)
    sigma = model.sde.sigma(torch.linspace(model.sde.t_min, 1, 2001, dtype=torch.float64)).mean()
    assert grad.item() == pytest.approx(2 * (0.5 - sigma.item()), abs=0.06)
