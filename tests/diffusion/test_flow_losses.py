"""EDM's loss and flow matching: their values, their minimiser, and their equality with each other's."""

import pytest
import torch
from cases import PREDICTIONS, Fixed, Recorder, Shifted, build, every_path, f64, generator, mixture_2d, normal, paths

from diffcli.diffusion.exact import Exact
from diffcli.diffusion.loss import DSM, EDM, Flow, TrainingSet
from diffcli.diffusion.sde import OneLevel
from diffcli.randomness import Draw
from diffcli.training.coupling import Independent

SD = 0.7
moderate = paths([("vp", "linear"), ("subvp", "cosine"), ("flow", "logit"), ("ve", "geometric")], t_min=0.2)


def data(n, seed=0):
    return mixture_2d().sample(n, generator(seed))[0]


def z_score(a):
    return (a.mean() / (a.std() / len(a) ** 0.5)).item()


def taken(loss, model, x0, draw):
    """The losses, and the eps, xt and t at which they were taken."""
    recorder = Recorder(model)
    losses = loss(recorder, x0, draw)
    ((xt, t),) = recorder.calls
    return losses, draw.normal("eps", x0.shape, x0.dtype), xt, t


@every_path
def test_edm_is_the_weighted_error_of_x0(sde):
    """w ||D - x0||^2, w = (r^2 + sd^2)/(r sd)^2, no 1/2, with r = sigma/alpha."""
    x0, model = data(60), Shifted(sde, mixture_2d(), 0.3)
    losses, eps, xt, t = taken(EDM(sigma_data=SD), model, x0, Draw(0, 0))
    assert torch.allclose(xt, sde.perturb(x0, t, eps), rtol=1e-12)
    r2 = (sde.sigma(t) / sde.alpha(t)) ** 2
    direct = (r2 + SD**2) / (r2 * SD**2) * (model(xt, t) - x0).square().sum(1)
    assert losses.shape == (60,)
    assert torch.allclose(losses, direct, rtol=1e-6, atol=1e-9)


@every_path
def test_edm_is_twice_the_bracket_with_its_weight(sde):
    x0, model = data(60), Shifted(sde, mixture_2d(), 0.3)
    bracket = DSM("edm", "lognormal", sigma_data=SD)(model, x0, Draw(0, 0))
    assert torch.allclose(EDM(sigma_data=SD)(model, x0, Draw(0, 0)), 2 * bracket, rtol=1e-7)


@every_path
def test_flow_is_the_error_of_the_velocity(sde):
    """The target is d x_t / dt at fixed x0 and eps, by differences."""
    x0, model = data(60), Shifted(sde, mixture_2d(), 0.3)
    losses, eps, xt, t = taken(Flow(Independent()), model, x0, Draw(0, 0))
    h = 1e-5 * torch.minimum(t - sde.t_min, sde.t_max - t).clamp(max=0.1)
    target = (sde.perturb(x0, t + h, eps) - sde.perturb(x0, t - h, eps)) / (2 * h[:, None])
    direct = (model.velocity(xt, t) - target).square().sum(1)
    assert losses.shape == (60,)
    inside = h > 1e-8
    if sde.times is not None:  # between two levels, where the difference does not straddle a knot
        near = (t[:, None] - sde.times).abs().min(1).values
        inside &= near > h
    assert inside.sum() > 40
    assert torch.allclose(losses[inside], direct[inside], rtol=2e-4, atol=1e-8)


@every_path
def test_flow_is_the_noise_bracket_times_the_speed(sde):
    """||u_theta - u||^2 = (sigma lam')^2 ||eps_theta - eps||^2."""
    x0, model = data(60), Shifted(sde, mixture_2d(), 0.3)
    losses, eps, xt, t = taken(Flow(Independent()), model, x0, Draw(0, 0))
    bracket = (model.eps(xt, t) - eps).square().sum(1)
    assert torch.allclose(losses, (sde.sigma(t) * sde.dlam(t)) ** 2 * bracket, rtol=1e-6)


class Same(Draw):
    """The same numbers in every dtype."""

    def normal(self, purpose, shape, dtype=torch.float32):
        return super().normal(purpose, shape, torch.float32).to(dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_path
def test_float32_is_enough(sde, prediction):
    """With coefficients in float64, a float32 network gets the losses of a float64 one on the whole path."""
    x0, out = data(200).float(), normal(3, 200, 2).float()
    for loss in (EDM(sigma_data=SD), Flow(Independent()), DSM("v"), DSM("edm", sigma_data=SD), DSM("min_snr")):
        single = loss(PREDICTIONS[prediction](sde, Fixed(out)), x0, Same(0, 0))
        double = loss(PREDICTIONS[prediction](sde, Fixed(out.double())), x0.double(), Same(0, 0))
        assert single.dtype == torch.float32 and torch.isfinite(single).all()
        assert single.mean().item() == pytest.approx(double.mean().item(), rel=2e-3)


@pytest.mark.parametrize("loss", [EDM(sigma_data=SD), Flow(Independent())], ids=["edm", "flow"])
@moderate
def test_the_exact_model_is_the_minimiser(sde, loss):
    """On the same draws every perturbed model has the larger mean, and the derivative at the exact one is 0."""
    x0, draw = data(20_000), Draw(0, 0)
    best = loss(Exact(sde, mixture_2d()), x0, draw)
    plus = loss(Shifted(sde, mixture_2d(), 0.2), x0, draw)
    minus = loss(Shifted(sde, mixture_2d(), -0.2), x0, draw)
    assert z_score(plus - best) > 4 and z_score(minus - best) > 4
    assert abs(z_score(plus - minus)) < 4


def test_any_event_shape():
    model, x0 = Exact(build("flow", "logit"), mixture_2d()), data(30)
    for loss in (EDM(sigma_data=SD), Flow(Independent())):
        flat = loss(model, x0, Draw(0, 0))
        assert torch.allclose(loss(model, x0.view(30, 1, 2, 1), Draw(0, 0)), flat, rtol=1e-12)


def test_setup_measures_and_refuses():
    items = TrainingSet(lambda: f64([1.0, 3.0], [1.0, 3.0]), (2,))
    loss = EDM()
    loss.setup(Exact(build("vp", "linear"), mixture_2d()), items)
    assert loss.sigma_data == 1.0
    for one in (EDM(), Flow(Independent())):
        with pytest.raises(ValueError, match="loss=dsm"):
            one.setup(Exact(OneLevel(), mixture_2d()), items)
    for wrong in (dict(sigma_data=0), dict(p_std=-1)):
        with pytest.raises(ValueError, match="must be above 0"):
            EDM(**wrong)
