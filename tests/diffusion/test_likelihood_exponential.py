"""The semi-linear multistep solver: what it solves exactly, its order, its own error, and what it costs."""

import math

import numpy
import pytest
import torch
from cases import Twice, build, f64, mixture_2d, mixture_of, normal, short_paths, usual_paths
from test_likelihood import at_t_min, item_noise, with_true_prior
from torchdiffeq import odeint

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import between_scales
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.likelihood.exponential import FORM, Exponential, weights
from diffcli.diffusion.likelihood.field import Reading
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise


def error(model, x, truth, **settings):
    """Of each item, the prior's left out, in nats; and what was found."""
    likelihood = Likelihood("exact", **settings)
    likelihood.setup(model, TrainingSet(lambda: x, tuple(x.shape[1:])))
    found = likelihood(model, x, item_noise(x))
    return with_true_prior(model, found) - truth, found


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("path", [("vp", "linear"), ("ve", "geometric"), ("flow", "logit")], ids="-".join)
def test_the_linear_part_is_exact(divergence, path):
    """N(0, I) has x0_hat proportional to x and g = 0: nothing is left to the polynomials, however few steps there are."""
    model = Exact(build(*path), GaussianMixture(f64(1.0), f64([0.0] * 3), torch.eye(3, dtype=torch.float64)[None]))
    x, truth = at_t_min(model, 10)
    found = Likelihood(divergence, solver="exponential", steps=4)(model, x, item_noise(x))
    assert (with_true_prior(model, found) - truth).abs().max() < 1e-9 and found.solver_err.max() < 1e-9


def test_weights_integrate_polynomials_in_tau():
    """`∫ tau^m dphi` from readings of tau^m at nodes on both sides, against the trapezoidal rule."""
    small, large, nodes = 0.07, 8.0, (3.0, 2.4, 1.9, 1.0)
    w = weights(small, large, 2.4, 1.9, nodes)
    lam = torch.linspace(2.4, 1.9, 20001, dtype=torch.float64)
    for m in range(4):
        fine = torch.trapezoid(between_scales(lam, small, large) ** m, FORM.of_lam(lam))
        found = sum(c * between_scales(f64(a)[0], small, large) ** m for c, a in zip(w, nodes, strict=True))
        assert found.item() == pytest.approx(fine.item(), rel=1e-7)


@short_paths
def test_its_order_is_four(sde):
    """Predicted and corrected through 4 readings: the median error falls by 2^4 where steps are halved, or by more."""
    model = Exact(sde, mixture_2d())
    x, truth = at_t_min(model, 24)
    coarse, fine = (error(model, x, truth, steps=n, tol=1e9)[0].abs() for n in (40, 80))
    assert torch.log2(coarse / fine).median() > 3.5


def still(sde, f):
    """A field that moves nothing, whose divergence in y is f(lam)."""

    def field(x, t, p, q):
        div = f(sde.lam(t)) / FORM.scale(sde, t)
        return Reading(x, t, p, q, torch.zeros_like(x), div.expand(len(x), 1))

    field.sde, field.varied = sde, False
    return field


@pytest.mark.heavy
@usual_paths
def test_the_log_density_is_integrated_through_six_readings(sde):
    """With the state at rest the quadrature is left alone: a polynomial of degree 5 in tau is exact, others are to order 6."""
    solver, x = Exponential(steps=16), torch.zeros(1, 3, dtype=torch.float64)

    def wrong(f, steps):
        found = solver.walk(still(sde, f), x, steps)
        ends = sde.lam(f64(sde.t_min, sde.t_max))
        phi, w = numpy.polynomial.legendre.leggauss(400)
        a, b = FORM.of_lam(ends)
        nodes = (a + b) / 2 + (b - a) / 2 * torch.tensor(phi)
        truth = (b - a) / 2 * (f(FORM.to_lam(nodes)) @ torch.tensor(w))
        scale = FORM.scale(sde, f64(sde.t_min, sde.t_max))
        return (found.integral[0, 0] - 3 * (scale[1] / scale[0]).log() - truth).item(), found.error.item()

    def tau(lam):
        return between_scales(lam, solver.grid.small, solver.grid.large)

    five, six = (wrong(lambda lam, m=m: (tau(lam) / 3 + 1) ** m, 16)[0] for m in (5, 6))
    assert abs(five) < 1e-9 < 1e-8 < abs(six)
    waves = [(n, k) for n in (32, 64) for k in range(6)]
    found = f64(*(wrong(lambda lam, k=k: torch.sin(3 * tau(lam) + k), n) for n, k in waves)).abs().view(2, 6, 2)
    error, estimate = found.unbind(2)
    assert (error.norm(dim=1) < estimate.norm(dim=1)).all() and torch.log2(error[0].norm() / error[1].norm()) > 5


@pytest.mark.parametrize("growth", [50, 100, 200])
@usual_paths
def test_its_own_error_does_not_cancel_between_steps(sde, growth):
    """A divergence that grows steeply towards the noise, as a network's does that has learned little: read at its last steps
    from one side, the two rules differ there with the other sign than before."""
    solver = Exponential(steps=32)
    phi, w = numpy.polynomial.legendre.leggauss(800)
    ends = sde.lam(f64(sde.t_min, sde.t_max))
    a, b = FORM.of_lam(ends)
    low, high = (between_scales(lam, solver.grid.small, solver.grid.large) for lam in ends)

    def f(lam):
        return torch.exp(growth * (between_scales(lam, solver.grid.small, solver.grid.large) - high) / (high - low))

    truth = (b - a) / 2 * (f(FORM.to_lam((a + b) / 2 + (b - a) / 2 * torch.tensor(phi))) @ torch.tensor(w))
    found = solver.walk(still(sde, f), torch.zeros(1, 3, dtype=torch.float64), 32)
    scale = FORM.scale(sde, f64(sde.t_min, sde.t_max))
    wrong = (found.integral[0, 0] - 3 * (scale[1] / scale[0]).log() - truth).abs()
    assert 1e-4 < wrong < found.error.item() < 10 * wrong


@pytest.mark.parametrize("steps", [24, 48])
@pytest.mark.parametrize("mixture", [mixture_2d(), mixture_of(16)], ids=["2d", "16d"])
@usual_paths
def test_its_own_error_bounds_the_true_one(sde, mixture, steps):
    """On nine items of ten, and is not idle: it is small where that is, and of its size."""
    model = Exact(sde, mixture)
    x, truth = at_t_min(model, 64)
    wrong, found = error(model, x, truth, steps=steps, tol=1e9)
    assert (wrong.abs() <= found.solver_err).double().mean() > 0.9
    assert found.solver_err.median() / x.shape[1] < {24: 2e-3, 48: 2e-4}[steps]
    assert found.solver_err.median() < 25 * wrong.abs().median()


def test_its_own_error_knows_a_start_within_the_noise():
    """At t_min = 0.1 nothing is smooth yet, and what the first correctors lack is most of the error."""
    model = Exact(build("vp", "linear", t_min=0.1), mixture_of(16))
    x, truth = at_t_min(model, 64)
    wrong, found = error(model, x, truth, steps=48, tol=1e9)
    assert (wrong.abs() <= found.solver_err).double().mean() > 0.9


def test_its_own_error_is_weighed_where_the_scales_are():
    """Data a hundredth as wide: the errors arise where sigma is a hundredth, and a slip in x weighs a hundred times more."""
    wide = mixture_2d()
    small = GaussianMixture(wide.weights, wide.means / 100, wide.covs / 1e4)
    model = Exact(build("ve", "geometric", t_min=0.0), small)
    x, truth = at_t_min(model, 64)
    wrong, found = error(model, x, truth, steps=32, tol=1e9)
    assert (wrong.abs() <= found.solver_err).double().mean() > 0.9 and found.solver_err.median() < 0.1


def test_a_hard_item_takes_twice_the_steps_until_its_error_fits():
    """It gets what it would get alone with so many, its neighbours what they get without it, and NFE counts every walk."""
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 6)
    x[4] = f64([8.0, -14.0])[0]

    def found(items, **settings):
        noise = ItemNoise(0, items, (2,), torch.float64)
        return Likelihood("hutchinson", probes=3, **settings)(model, x[items], noise)

    once = found(list(range(6)), steps=16, tol=1e9)
    tol = once.solver_err.sort().values[-2:].mean().item() / 2  # the hardest alone is above it
    whole, hard = found(list(range(6)), steps=16, tol=tol), int(once.solver_err.argmax())
    again = found([hard], steps=32, tol=1e9)
    assert again.solver_err / 2 < tol
    assert whole.nfe.tolist() == [18 + 34 * (i == hard) for i in range(6)]
    easy = [i for i in range(6) if i != hard]
    for name in ("log_prob", "std_err", "x1", "solver_err", "truncation"):
        a, b, kept = (getattr(r, name) for r in (whole, once, again))
        assert torch.allclose(a[easy], b[easy], rtol=1e-12) and torch.allclose(a[hard], kept[0], rtol=1e-10)


def test_what_stays_above_the_tolerance_says_so():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 2)
    found = Likelihood("exact", steps=4, tol=1e-12)(model, x, item_noise(x))
    assert (found.nfe == sum(4 * 2**k + 2 for k in range(5))).all() and (found.solver_err > 1e-12).all()


@short_paths
def test_agrees_with_rk45_probe_by_probe(sde):
    model = Exact(sde, mixture_of(6))
    x, _ = at_t_min(model, 5)
    fine = Likelihood(probes=2, solver="rk45", tol=1e-7)(model, x, item_noise(x))
    found = Likelihood(probes=2, steps=96, tol=1e9, along="fixed")(model, x, item_noise(x))
    for name in ("log_prob", "std_err", "x1"):
        assert torch.allclose(getattr(found, name), getattr(fine, name), rtol=1e-3, atol=2e-4)
    assert torch.allclose(found.truncation, fine.truncation, rtol=1e-6)
    assert torch.isnan(fine.solver_err).all() and (found.nfe == 98).all()


@pytest.mark.parametrize("d", [2, 16])
@usual_paths
def test_a_quarter_of_what_dopri5_takes(sde, d):
    """Mean within 0.005 bits/dim, at a quarter of the evaluations of dopri5 in t over the joint batch, rtol = atol = 1e-5."""
    model, calls = Exact(sde, mixture_2d() if d == 2 else mixture_of(d)), []
    x, truth = at_t_min(model, 32)

    def fn(t, state):
        calls.append(t)
        y = state[0].detach().requires_grad_()
        with torch.enable_grad():
            u = model.velocity(y, t)
            div = sum(torch.autograd.grad(u[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(d))
        return u.detach(), div.detach()

    zero = torch.zeros(32, dtype=torch.float64)
    odeint(fn, (x, zero), f64(sde.t_min, sde.t_max), rtol=1e-5, atol=1e-5, method="dopri5")
    wrong, found = error(model, x, truth, steps=len(calls) // 4 - 2, tol=1e9)
    assert (found.nfe <= len(calls) / 4).all()
    assert abs(wrong.mean()) / d / math.log(2) < 0.005


def test_evaluations_are_counted_at_the_network():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 3)
    for solver, nfe in (("exponential", 10), ("rk4", 32), ("heun", 16)):
        likelihood = Likelihood("exact", solver=solver, steps=8, tol=1e9 if solver == "exponential" else None)
        assert (likelihood(model, x, item_noise(x)).nfe == nfe).all()
        assert (likelihood(Twice(model), x, item_noise(x)).nfe == 2 * nfe).all()


def test_a_value_that_is_not_finite_ends_it():
    class Broken(Exact):
        def parts(self, xt, t, **cond):
            c_skip, c_out, out = super().parts(xt, t, **cond)
            return c_skip, c_out, torch.where(self.sde.lam(t) < 1, torch.nan, 1.0) * out

    model = Broken(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 3)
    with pytest.raises(NumericalError, match="non-finite value at t = 0.* evaluations"):
        Likelihood("exact", steps=16)(model, x, item_noise(x))


def test_conditions_and_probes_follow_their_items():
    """A doubled item is read under its own label."""

    class Labelled(Exact):
        def parts(self, xt, t, label):
            c_skip, c_out, out = super().parts(xt, t)
            return c_skip, c_out, out * (1 + 0.2 * label[:, None])

    model, label = Labelled(build("vp", "linear"), mixture_2d()), torch.arange(4)
    x, _ = at_t_min(model, 4)
    found = Likelihood(probes=2, steps=8, tol=1e-3)(model, x, item_noise(x), label=label)
    alone = Likelihood(probes=2, steps=8, tol=1e-3)(
        model, x[2:3], ItemNoise(0, [2], (2,), torch.float64), label=label[2:3]
    )
    assert found.nfe[2] > 10 and torch.allclose(found.log_prob[2:3], alone.log_prob, rtol=1e-12)


def test_float32_states_keep_the_integral_in_float64():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, truth = at_t_min(model, 12)
    wrong, found = error(model, x.float(), truth)
    assert found.x1.dtype == torch.float32 and found.log_prob.dtype == torch.float64
    assert wrong.abs().max() < 0.03


def test_no_more_of_a_field_than_readings():
    """Every time is read once, from t_min up to t_max, but that after the first step, which is read again."""
    model, times = Exact(build("flow", "logit"), mixture_2d()), []
    real, x = model.parts, normal(0, 2, 2)
    model.parts = lambda xt, t, **cond: times.append(t.item()) or real(xt, t, **cond)
    Likelihood("exact", steps=12, tol=1e9)(model, x, item_noise(x))
    assert times.pop(1) == times[1] and len(times) == 13 and times == sorted(set(times))
    assert (times[0], times[-1]) == (model.sde.t_min, model.sde.t_max)
