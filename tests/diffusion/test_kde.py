"""The exact score of a finite set of items: against the mixture that it is, and its own log-density."""

import pytest
import torch
from cases import build, f64, mixture_of, normal

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.kde import KDE
from diffcli.diffusion.kernel_density import GaussianKDE, scott
from diffcli.diffusion.loss import TrainingSet
from diffcli.diffusion.sde import OneLevel

PATHS = [pytest.param(build(*p), id="-".join(p)) for p in [("vp", "linear"), ("ve", "geometric"), ("flow", "logit")]]
ITEMS = 300 + 2 * normal(0, 12, 2)  # far from the origin: the expanded square must not cancel


def fitted(sde, items, bandwidth=0.0):
    model = KDE(sde, list(items.shape[1:]), len(items), bandwidth)
    model.fit(TrainingSet(lambda: items, tuple(items.shape[1:])))
    return model


@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
@pytest.mark.parametrize("sde", PATHS)
def test_is_the_mixture_of_its_items_with_equal_weights(sde, bandwidth):
    """Its score, x0_hat and density are those of sum_m N(c_m, h^2 I) / N: exactly at h > 0, with a tiny covariance at h = 0."""
    covs = (bandwidth**2 or 1e-12) * torch.eye(2, dtype=torch.float64).expand(len(ITEMS), 2, 2)
    truth = Exact(sde, GaussianMixture(torch.full((len(ITEMS),), 1 / len(ITEMS)).double(), ITEMS, covs))
    model = fitted(sde, ITEMS, bandwidth)
    t = torch.linspace(0.02, sde.t_max, 40, dtype=torch.float64)
    xt = sde.perturb(ITEMS[torch.arange(40) % 12], t, normal(1, 40, 2))
    for name in ("score", "eps", "forward"):
        expected = getattr(truth, name)(xt, t)
        assert torch.allclose(getattr(model, name)(xt, t), expected, rtol=1e-5, atol=1e-6 * expected.abs().max()), name
    assert torch.allclose(model.log_prob(xt, t), truth.log_prob(xt, t), atol=1e-5)


@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
def test_score_is_the_gradient_of_its_log_density(bandwidth):
    model = fitted(build("vp", "cosine"), ITEMS - 300, bandwidth)
    t, xt = f64(0.1, 0.3, 0.9), normal(2, 3, 2).requires_grad_()
    (expected,) = torch.autograd.grad(model.log_prob(xt, t).sum(), xt)
    assert torch.allclose(model.score(xt, t), expected, rtol=1e-9)
    assert torch.allclose(model.eps(xt, t), -model.sde.sigma(t)[:, None] * expected, rtol=1e-9)


def test_density_integrates_to_one():
    estimate = GaussianKDE(normal(0, 5, 1), 0.4)
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    log_p = estimate.log_prob(x, f64(0.8), f64(0.3))
    assert abs(torch.trapezoid(log_p.exp(), x[:, 0]).item() - 1) < 1e-9


def test_chunks_of_rows_change_nothing(monkeypatch):
    from diffcli.diffusion import kernel_density

    model, xt = fitted(build("vp", "linear"), ITEMS), 300 + normal(3, 30, 2)
    t = torch.linspace(0.1, 1, 30, dtype=torch.float64)
    whole = model.score(xt, t), model.log_prob(xt, t)
    monkeypatch.setattr(kernel_density, "CHUNK", 50)  # four rows
    assert torch.allclose(model.score(xt, t), whole[0], rtol=1e-12)
    assert torch.allclose(model.log_prob(xt, t), whole[1], rtol=1e-12)


def test_images_are_their_pixels():
    images, xt, t = normal(0, 6, 1, 2, 3), normal(1, 4, 1, 2, 3), f64(0.3)[0]
    sde = build("vp", "linear")
    flat = fitted(sde, images.flatten(1))(xt.flatten(1), t)
    assert torch.equal(fitted(sde, images)(xt, t).flatten(1), flat)


def test_float32_states_and_casts_lose_nothing():
    """A cast model, as sampling makes it, computes in float64: x0_hat is a mean of the items to float32's round-off."""
    model = fitted(build("vp", "linear"), ITEMS).float()
    assert model.centres.dtype == torch.float64
    t, xt = f64(1e-3)[0], model.sde.perturb(ITEMS, f64(1e-3)[0], normal(1, 12, 2)).float()
    found = model(xt, t)
    assert found.dtype == torch.float32
    assert (found.double() - ITEMS).abs().max() < 1e-4


def test_a_loaded_state_takes_the_place_of_what_was_fitted():
    """After the first score too, which keeps the items' norms."""
    sde, xt, t = build("vp", "linear"), normal(1, 4, 2), f64(0.3)[0]
    model, other = fitted(sde, ITEMS), fitted(sde, normal(2, 12, 2), 0.2)
    before = model.score(xt, t)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.score(xt, t), other.score(xt, t))
    assert not torch.allclose(before, model.score(xt, t))


def test_at_no_noise_the_score_of_a_widened_item_is_its_own():
    model = fitted(OneLevel(1.0, 0.0), normal(0, 1, 3), 0.5)
    x = normal(1, 4, 3)
    assert torch.allclose(model.score(x, f64(0.0)[0]), (model.centres - x) / 0.25, rtol=1e-12)


def test_scotts_rule():
    x = mixture_of(3).sample(4000, torch.Generator().manual_seed(0))[0]
    assert scott(x) == pytest.approx(x.var(0).mean().sqrt().item() * 4000 ** (-1 / 7), rel=1e-3)
    assert scott(7 + 2 * x) == pytest.approx(2 * scott(x))
    assert fitted(build("vp", "linear"), x, "auto").estimate.bandwidth == scott(x)
    with pytest.raises(ValueError, match="do not vary"):
        scott(torch.ones(5, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KDE(build("vp", "linear"), [2], 4, -0.1), "at least 0"),
        (lambda: KDE(OneLevel(1.0, 0.0), [2], 4), "no width"),
        (lambda: KDE(build("vp", "linear"), [2], 4).fit(TrainingSet(lambda: ITEMS, (2,))), "number of items"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()
