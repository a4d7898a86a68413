"""What the checks find where it is known: on an exact model, on one with a known error, and on fields with closed forms."""

import math

import pytest
import torch
from torch import nn

from diffcli.diagnosis.checks import CHECKS
from diffcli.diagnosis.errors import held_out
from diffcli.diagnosis.finding import mean_se, ratio_se
from diffcli.diagnosis.jacobians import gauss_legendre, jacobians, loops
from diffcli.diagnosis.levels import Levels
from diffcli.diagnosis.loss import linear_loss
from diffcli.diagnosis.probes import products, score_fpe_terms, square_of_mean
from diffcli.diagnosis.subject import Subject
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.density import asymmetry, score_fpe
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.perturbed import Perturbed
from diffcli.diffusion.schedule import DDPM, Geometric, Linear
from diffcli.diffusion.sde import VE, VP

WALKS = ("marginals", "round_trip", "gap")  # which take long


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(d=2):
    """Two overlapping components with full covariances."""
    a = torch.randn(2, d, d, dtype=torch.float64, generator=generator(1))
    covs = 0.2 * a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(f64(0.4, 0.6), torch.randn(2, d, dtype=torch.float64, generator=generator(2)), covs)


def subject(denoiser=None, n=400, d=2, known=True, exact_up_to=16, **settings) -> Subject:
    law = mixture(d)
    denoiser = denoiser or Exact(VP(Linear()), law)
    held, train = (law.sample(2 * n, generator(seed))[0] for seed in (3, 4))
    data = TrainingSet(lambda: train, (d,), None, law if known else None)
    defaults = dict(times=6, probes=8, exact_up_to=exact_up_to, batch_size=256, seed=0)
    return Subject(
        denoiser,
        None,
        {"model": "model"},
        held,
        train,
        data,
        n,
        device=torch.device("cpu"),
        dtype=torch.float64,
        **(defaults | settings),
    )


class Turned(Denoiser):
    """A Gaussian's score and a rotation beside it: `s = -(x + w R x)/(alpha^2 v + sigma^2)`, R antisymmetric."""

    def __init__(self, sde, w: float, v: float = 1.0):
        super().__init__(sde)
        self.w, self.v, self.r = w, v, f64([0.0, 1.0], [-1.0, 0.0])

    def parts(self, xt, t, **cond):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        scale = (alpha**2 * self.v + sigma**2).reshape(-1, 1)
        return 1 / alpha, sigma**2 / alpha, -(xt + self.w * xt @ self.r.T) / scale


def test_an_exact_model_passes_every_check():
    found = {name: check(subject(times=4, n=200)) for name, check in CHECKS.items() if name not in WALKS}
    assert {name: f.status for name, f in found.items() if f.status != "good"} == {"ema": "left out"}
    assert found["loss"].numbers["fisher_mean"] == (0.0, 0.0)
    assert found["fpe"].numbers["median"] < 1e-6
    assert max(row["score"] for row in found["path"].numbers["levels"]) < 1e-9
    assert max(row["loop_nats"] for row in found["path"].numbers["levels"]) < 1e-3
    for row in found["calibration"].numbers["levels"]:
        assert abs(row["slope"] - 1) < 4 * row["slope_se"] + 1e-12
        assert abs(row["intercept"]) < 4 * row["intercept_se"] + 1e-12
        assert abs(row["leftover"]) < 4 * row["leftover_se"] + 1e-12
    for row in found["calibration"].numbers["variance"]:
        assert abs(row["actual_over_predicted"] - 1) < 4 * row["se"]


def test_sde_ode_and_bound_of_an_exact_model_agree():
    found = {"marginals": CHECKS["marginals"](subject(n=300)), "gap": CHECKS["gap"](subject(n=100))}
    assert found["marginals"].status == "good"
    gap, se = found["gap"].numbers["bound_minus_ode"]
    assert abs(gap) < 4 * se
    assert found["gap"].numbers["ode_divergence_std_err"] == 0


@pytest.mark.parametrize(("spread", "status"), [(0.001, "good"), (3.0, "measured")])
def test_a_gap_within_a_wide_error_is_not_called_right(spread, status):
    ode = torch.stack([torch.linspace(-1, 1, 8), torch.zeros(8)], 1).double()
    finding = CHECKS["gap"]._finding(subject(n=8), ode, ode + spread * ode.flip(0))
    assert finding.status == status
    assert ("too few to tell" in finding.measured) is (status == "measured")


def test_a_round_trip_falls_with_the_order():
    found = CHECKS["round_trip"](subject(n=32)).numbers
    error = {(row["method"], row["steps"]): row["error"] for row in found["runs"]}
    assert error["heun", 64] < error["heun", 16] / 8
    assert error["rk4", 32] < error["rk4", 8] / 32
    assert error["rk4", 32] < 0.01


@pytest.mark.parametrize("sde", [VP(Linear()), VE(Geometric(0.01, 10.0))], ids=["vp", "ve"])
def test_a_known_error_is_the_fisher_divergence(sde):
    """eps is off by error r: the loss rises by error^2 E r^2, whose mean square is near 1."""
    model = Perturbed(Exact(sde, mixture()), 2, error=0.3, seed=5)
    who = subject(model)
    errors = held_out(who)
    # what the error is at the very points, from its definition
    wanted = torch.empty_like(errors.loss["model"])
    for k in range(len(errors.levels)):
        xt = sde.perturb(who.x0, errors.t[k], who.normal(who.x0.shape, "held out", "eps", k))
        wanted[k] = 0.09 * model.field(xt, errors.t[k]).square().mean(1)
    assert torch.allclose(errors.to_floor["model"], wanted, rtol=1e-6)
    finding = CHECKS["loss"](who)
    assert finding.numbers["fisher_mean"][0] == pytest.approx(wanted.mean().item(), rel=1e-6)
    assert 0.03 < finding.numbers["fisher_mean"][0] < 0.2
    assert finding.status == "bad"
    # the difference of the losses estimates the same
    for row in finding.numbers["levels"]:
        assert abs(row["loss_minus_floor"] - row["fisher_model"]) < 4.5 * row["loss_minus_floor_se"]
    nats = 2 * sum(
        w * row["fisher_model"] for w, row in zip(errors.levels.width.tolist(), finding.numbers["levels"], strict=True)
    )
    assert finding.numbers["fisher_integral_nats"][0] == pytest.approx(nats)


def test_a_wrong_model_fails_the_others():
    who = subject(Perturbed(Exact(VP(Linear()), mixture()), 2, error=0.3, seed=5), n=300)
    for name in ("regions", "fpe", "path", "calibration"):
        assert CHECKS[name](who).status in ("look", "bad"), name


def test_the_floor_of_unknown_data_is_that_of_the_items():
    """The ideal denoiser of the items has the least loss on them: even the exact one has more."""
    who = subject(known=False, n=60)
    finding = CHECKS["loss"](who)
    assert finding.status in ("measured", "look")
    for row in finding.numbers["levels"]:
        assert row["loss_floor"] <= row["loss_model"] + 3 * row["loss_minus_floor_se"]
        assert abs(row["loss_minus_floor"] - row["fisher_model"]) < 4.5 * row["loss_minus_floor_se"]
    assert finding.numbers["levels"][0]["fisher_model"] > 0.05


def test_a_linear_denoiser_is_the_best_for_a_gaussian():
    """Its loss by the formula, and by the exact denoiser of one Gaussian measured."""
    law = GaussianMixture(f64(1.0), f64([0.3, -0.2]), f64([[0.5, 0.1], [0.1, 0.2]]))
    sde, items = VP(Linear()), law.sample(100_000, generator())[0]
    t = f64(0.1, 0.4)
    found = linear_loss(items, sde.alpha(t), sde.sigma(t))
    for k, time in enumerate(t):
        eps = torch.randn(items.shape, dtype=torch.float64, generator=generator(1))
        error = Exact(sde, law).eps(sde.perturb(items, time, eps), time) - eps
        mean, se = mean_se(error.square().mean(1))
        assert abs(found[k].item() - mean) < 5 * se


def test_products_are_those_of_the_jacobian():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, e = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator())
    forth, back = products(lambda x, t: net(x), x, f64(0.5)[0], e[None])
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(net, x[i])
        assert torch.allclose(forth[0, i], jacobian @ e[i])
        assert torch.allclose(back[0, i], jacobian.T @ e[i])


def test_a_rotation_has_its_asymmetry_and_circulation():
    """J = -(I + w R)/q: ||J - J^T||/||J + J^T|| = w, and the integral around a triangle is w/q times twice its area."""
    sde, w = VP(Linear()), 0.3
    who = subject(Turned(sde, w), times=6)
    for row in CHECKS["path"](who).numbers["levels"]:
        assert row["score"] == pytest.approx(w, rel=1e-9)
    t = f64(0.3)[0]
    around, _ = loops(who, t, "area", 50)
    a, b, c = (sde.perturb(who.x0[:50], t, who.normal((50, 2), "area", "corner", k)) for k in range(3))
    u, v = b - a, c - a
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    assert torch.allclose(around.abs(), w * area.abs() / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2), rtol=1e-9)
    assert (around * area > 0).all() or (around * area < 0).all()


def test_probes_agree_with_whole_jacobians():
    """The estimates by random signs have the exact values as their means: asymmetry, trace and the residual."""
    model = Perturbed(Exact(VP(Linear()), mixture(3)), 3, error=0.5, seed=1)
    exact, probed = (subject(model, d=3, n=1600, times=4, exact_up_to=e, probes=16, batch_size=512) for e in (16, 0))
    a, b = jacobians(exact), jacobians(probed)
    for name in ("antisymmetric", "symmetric", "learned", "trace"):
        for p, q in zip(getattr(a, name), getattr(b, name), strict=True):
            mean, se = mean_se(q - p)
            assert abs(mean) < 4.5 * se + 1e-9, name
    exact, probed = (CHECKS["fpe"](s).numbers["levels"] for s in (exact, probed))
    for p, q in zip(exact, probed, strict=True):
        assert abs(p["squared"] - q["squared"]) < 5 * q["squared_se"] + 1e-9


def test_whole_jacobians_agree_with_the_library_of_densities():
    model = Perturbed(Exact(VP(Linear()), mixture(3)), 3, error=0.5, seed=1)
    who, t = subject(model, d=3), f64(0.2)[0]
    x = model.sde.perturb(who.x0[:20], t, who.normal((20, 3), "x"))
    probes = who.directions(20)
    left, others, spread = score_fpe_terms(model.score, model.sde, x, t, probes)
    residual = left - others[0] - others[1] - spread.mean(0)
    assert torch.allclose(residual, score_fpe(model.score, model.sde, x, t).value, rtol=1e-8, atol=1e-10)
    forth, back = products(model.score, x, t, probes)
    ratio = ((forth - back).square().sum((0, 2)) / (forth + back).square().sum((0, 2))).sqrt()
    assert torch.allclose(ratio, asymmetry(model.score, x, t), rtol=1e-9)


def test_the_square_of_a_mean_is_without_bias():
    draws = 1 + torch.randn(4, 20_000, 3, dtype=torch.float64, generator=generator())
    mean, se = mean_se(square_of_mean(draws, exact=False))
    assert abs(mean - 3) < 4 * se
    assert mean_se(square_of_mean(draws, exact=True))[0] > 3.5  # the noise of the mean is in it
    assert torch.equal(square_of_mean(draws[:1], exact=True), draws[0].square().sum(1))


def test_the_error_of_a_ratio_covers():
    covered = 0
    for seed in range(300):
        below = 1 + torch.rand(50, dtype=torch.float64, generator=generator(seed))
        above = 2 * below + torch.randn(50, dtype=torch.float64, generator=generator(seed + 1000))
        r, se = ratio_se(above, below)
        covered += abs(r - 2) < 1.96 * se
    assert 0.91 < covered / 300 < 0.98


def test_gauss_legendre_is_exact_to_its_degree():
    nodes, weights = gauss_legendre(5)
    for power in range(10):
        assert sum(w * u**power for u, w in zip(nodes, weights, strict=True)) == pytest.approx(1 / (power + 1))
    assert sum(w * u**10 for u, w in zip(nodes, weights, strict=True)) != pytest.approx(1 / 11, rel=1e-9)


def test_levels_cover_the_process_and_keep_to_a_chain():
    sde = VP(Linear())
    levels = Levels(sde, 10)
    ends = sde.lam(f64(sde.t_min, sde.t_max))
    assert levels.width.sum().item() == pytest.approx((ends[0] - ends[1]).item())
    t = torch.cat([levels.spread(k, 100, generator(k)) for k in range(10)])
    lam = sde.lam(t).sort(descending=True).values
    edges = torch.linspace(ends[0], ends[1], 1001, dtype=torch.float64)
    assert ((lam <= edges[:-1] + 1e-6) & (lam >= edges[1:] - 1e-6)).all()  # one in each thousandth
    chain = VP(DDPM())
    levels = Levels(chain, 10)
    assert all((chain.times - t).abs().min() == 0 for t in levels.t)
    assert torch.equal(levels.spread(3, 5, generator()), levels.t[3].expand(5))
    assert math.isclose(levels.width.sum().item(), (chain.lam(f64(chain.t_min)) - chain.lam(f64(chain.t_max))).item())


def test_a_field_that_is_no_mean_is_asked_little():
    model = Exact(VP(Linear()), mixture())
    model.posterior_mean = False
    who = subject(model, n=100)
    found = {name: CHECKS[name].leave_out(who) for name in CHECKS}
    assert {name for name, reason in found.items() if not reason} == {"marginals", "round_trip"}
    assert all("free field" in reason or "one set of weights" in reason for reason in found.values() if reason)
