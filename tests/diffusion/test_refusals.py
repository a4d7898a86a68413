"""Every constructor refuses what is out of range, with a sentence that says what would do."""

import pytest
import torch
from cases import build, every_path

from diffcli.diffusion.grid import Karras, UniformLam, UniformT
from diffcli.diffusion.likelihood import Hutchinson, Likelihood
from diffcli.diffusion.loss import DSM
from diffcli.diffusion.ode import DormandPrince, FixedStep
from diffcli.diffusion.samplers import DDIM, RK45, Heun
from diffcli.diffusion.schedule import Cosine, Geometric, Linear
from diffcli.diffusion.sde import VE, VP, SubVP

REFUSED = {
    "beta_min 0": (lambda: Linear(beta_min=0.0), "beta_min must be above 0, got 0.0"),
    "beta_max low": (lambda: Linear(beta_min=5.0, beta_max=4.0), "beta_max must be at least beta_min = 5.0, got 4.0"),
    "s 0": (lambda: Cosine(0.0), "s must lie between 0 and 1, got 0.0"),
    "s 1": (lambda: Cosine(1.0), "s must lie between 0 and 1, got 1.0"),
    "sigma_min 0": (lambda: Geometric(sigma_min=0.0), "sigma_min must be above 0, got 0.0"),
    "sigma_max low": (lambda: Geometric(1.0, 1.0), "sigma_max must be above sigma_min = 1.0, got 1.0"),
    "t_min negative": (lambda: VP(Linear(), -1e-3), "t_min must lie in [0, 1.0), got -0.001"),
    "t_min at t_max": (lambda: SubVP(Cosine(), 0.9946), "t_min must lie in [0, 0.9946), got 0.9946"),
    "no noise, vp": (lambda: VP(Linear(), 0.0), "t_min = 0.0 has no noise at all"),
    "no noise, ve": (lambda: VE(Cosine(), 0.0), "t_min = 0.0 has no noise at all"),
    "grid t_min 1": (lambda: UniformT(1.0), "t_min must lie in [0, 1), got 1.0"),
    "grid t_min -": (lambda: UniformLam(-0.5), "t_min must lie in [0, 1), got -0.5"),
    "rho 0": (lambda: Karras(rho=0.0), "rho must be above 0, got 0.0"),
    "eta high": (lambda: DDIM(1.01), "eta must lie in [0, 1], got 1.01"),
    "eta low": (lambda: DDIM(-0.01), "eta must lie in [0, 1], got -0.01"),
    "variable": (lambda: Heun("x"), "variable must be one of t, lam, sigma, got x"),
    "rk45 tol 0": (lambda: RK45(0.0), "tol must lie between 0 and 1, got 0.0"),
    "tol 1": (lambda: DormandPrince(1.0), "tol must lie between 0 and 1, got 1.0"),
    "method": (lambda: FixedStep("euler"), "method must be one of heun, rk4, got euler"),
    "steps 0": (lambda: FixedStep("rk4", 0), "steps must be at least 1, got 0"),
    "probes 0": (lambda: Hutchinson(0), "probes must be at least 1, got 0"),
    "nll probes 0": (lambda: Likelihood(probes=0), "probes must be at least 1, got 0"),
    "nll tol": (lambda: Likelihood(solver="rk45", tol=-1.0), "tol must lie between 0 and 1, got -1.0"),
    "nll exponential tol": (lambda: Likelihood(tol=-1.0), "tol must be above 0, got -1.0"),
    "nll exponential steps": (lambda: Likelihood(steps=3), "needs at least 4 steps, got 3"),
    "nll memory": (lambda: Likelihood(memory=0.0), "memory must be above 0"),
    "nll solver": (lambda: Likelihood(solver="euler"), "must be one of"),
    "nll divergence": (
        lambda: Likelihood(divergence="exakt"),
        "divergence must be one of exact, hutchinson, got exakt",
    ),
    "weight": (
        lambda: DSM("sigma"),
        "weight must be one of simple, likelihood, uniform, min_snr, edm, v, snr, learned, got",
    ),
    "time": (lambda: DSM(time="lam"), "time must be one of uniform, levels, lognormal, importance, got lam"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_sentence(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        make()
    assert sentence in str(caught.value)


def test_takes_the_ends_that_are_allowed():
    Linear(1.0, 1.0), DDIM(0.0), DDIM(1.0), UniformT(0.0), VE(Geometric(), 0.0), FixedStep("heun", 1), Hutchinson(1)


@pytest.mark.parametrize("cls", [VP, SubVP, VE])
def test_a_noise_floor_makes_t_zero_legitimate(cls):
    """A geometric schedule has noise at t = 0."""
    sde = cls(Geometric(), 0.0)
    assert torch.isfinite(sde.lam(torch.zeros(1, dtype=torch.float64))).all()


@every_path
def test_coefficients_are_finite_wherever_the_path_is_used(sde):
    t = torch.linspace(sde.t_min, sde.t_max, 101, dtype=torch.float64)
    for fn in (sde.alpha, sde.sigma, sde.lam, sde.f, sde.g2, sde.dlam, sde.dlog_sigma):
        assert torch.isfinite(fn(t)).all(), fn.__name__
    assert build("vp", "cosine").alpha(torch.tensor(0.9946).double()) > 0
