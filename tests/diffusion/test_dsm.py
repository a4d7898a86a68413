"""Denoising score matching: its value, its minimiser, and explicit score matching but for a constant."""

import pytest
import torch
from cases import Recorder, Shifted, build, every_path, generator, mixture_2d, normal

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.loss import DSM
from diffcli.diffusion.weighting import weights
from diffcli.randomness import Draw

SD = 0.7
FIXED = [name for name in weights() if name != "learned"]
every_weight = pytest.mark.parametrize("weight", FIXED)
levels = [pytest.param(build(*p, t_min=0.2), id="-".join(p)) for p in [("vp", "linear"), ("subvp", "cosine")]]
levels.append(pytest.param(build("ve", "geometric", t_min=0.3), id="ve-geometric"))
three_paths = pytest.mark.parametrize("sde", levels)  # where 1/sigma^2 is moderate, so that means are soon known


def data(n, seed=0):
    return mixture_2d().sample(n, generator(seed))[0]


def other_mixture():
    true = mixture_2d()
    return GaussianMixture(true.weights.flip(0), 0.9 * true.means + 0.1, 1.2 * true.covs)


def evaluate(weight, model, x0, draw, **options):
    """The loss of each item, and the (xt, t) at which it was taken."""
    recorder = Recorder(model)
    losses = DSM(weight, sigma_data=SD, **options)(recorder, x0, draw)
    ((xt, t),) = recorder.calls
    return losses, xt, t


def z_score(a):
    return (a.mean() / (a.std() / len(a) ** 0.5)).item()


@every_weight
@every_path
def test_value_at_one_draw(sde, weight):
    """1/2 w ||s + eps/sigma||^2 with the w of the papers; those on x0 are also 1/2 W ||x0_hat - x0||^2, v ||v_hat - v||^2 / 2."""
    x0, model = data(60), Shifted(sde, mixture_2d(), 0.3)
    losses, xt, t = evaluate(weight, model, x0, Draw(0, 0))
    assert losses.shape == (60,)
    keep = sde.sigma(t) > 1e-4  # where eps can be read back from xt
    losses, xt, t, x0 = losses[keep], xt[keep], t[keep], x0[keep]
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    eps = (xt - alpha * x0) / sigma
    bracket = (model.score(xt, t) + eps / sigma).square().sum(1)
    snr, r2 = (alpha / sigma)[:, 0] ** 2, (sigma / alpha)[:, 0] ** 2
    w = {"simple": sigma[:, 0] ** 2, "likelihood": sde.g2(t), "uniform": torch.ones_like(t)}
    on_x0 = {
        "snr": snr,
        "min_snr": snr.clamp(max=5),
        "edm": (r2 + SD**2) / (r2 * SD**2),
        "v": (alpha**2 + sigma**2)[:, 0] ** 2 / sigma[:, 0] ** 2,
    }
    w |= {name: value * sigma[:, 0] ** 4 / alpha[:, 0] ** 2 for name, value in on_x0.items()}
    assert torch.allclose(losses, 0.5 * w[weight] * bracket, rtol=1e-8, atol=1e-10)
    direct = {"simple": 0.5 * (model.eps(xt, t) - eps).square().sum(1)}
    error = (model(xt, t) - x0).square().sum(1)
    direct |= {name: 0.5 * value * error for name, value in on_x0.items()}
    if weight in direct:
        assert torch.allclose(losses, direct[weight], rtol=1e-7, atol=1e-8)
    if weight == "v":
        v = alpha * eps - sigma * x0
        assert torch.allclose(losses, 0.5 * (model.v(xt, t) - v).square().sum(1), rtol=1e-7, atol=1e-8)


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
    x0, draw, factor = data(20_000), Draw(0, 1), weights(sigma_data=SD)[weight].factor
    true = Exact(sde, mixture_2d())
    a, b = Shifted(sde, mixture_2d(), 0.4), Exact(sde, other_mixture())
    loss_a, xt, t = evaluate(weight, a, x0, draw)
    loss_b = evaluate(weight, b, x0, draw)[0]

    def explicit(model):
        w = factor(sde, t) * sde.sigma(t) ** 2
        return 0.5 * w * (model.score(xt, t) - true.score(xt, t)).square().sum(1)

    dsm, esm = loss_a - loss_b, explicit(a) - explicit(b)
    assert abs(z_score(dsm - esm)) < 4
    assert abs(z_score(esm)) > 10  # it is no law about zero


@every_weight
def test_the_same_draw_gives_the_same_loss(weight):
    model, x0 = Exact(build("vp", "linear"), mixture_2d()), data(30)
    loss = DSM(weight, sigma_data=SD)
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


@pytest.mark.parametrize("time", ["uniform", "importance"])
@three_paths
def test_the_likelihood_weight_is_the_bound(sde, time):
    """1/2 int g^2 E||s_theta - s||^2 dt, by quadrature, is the difference of the losses over [t_min, t_max]."""
    size, grid = 0.4, torch.linspace(sde.t_min, sde.t_max, 101, dtype=torch.float64)
    x = sde.perturb(data(4000, 5)[None], grid, normal(6, 4000, 2)[None].expand(101, -1, -1))
    wrong = torch.stack([torch.sin(x[..., 1]), 0.5 + torch.cos(x[..., 0])], dim=-1).square().sum(-1)
    # s_theta - s = size wrong / sigma; the mean over draws, then the integral
    error = (size / sde.sigma(grid)) ** 2 * wrong.mean(1)
    bound = torch.trapezoid(0.5 * sde.g2(grid) * error, grid)
    x0, draw = data(40_000), Draw(0, 2)
    losses = [
        evaluate("likelihood", model, x0, draw, time=time)[0]
        for model in (Shifted(sde, mixture_2d(), size), Exact(sde, mixture_2d()))
    ]
    difference = (sde.t_max - sde.t_min) * (losses[0] - losses[1])
    assert abs(z_score(difference - bound)) < 4
    assert z_score(difference) > 20  # it is known well enough to say so


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
