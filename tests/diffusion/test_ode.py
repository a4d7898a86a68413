"""The ODE solvers on problems with known answers: tableaux, orders, tolerance, one step size an item, failures."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from cases import f64

from diffcli.diffusion.ode import DOPRI5, HEUN, RK4, DormandPrince, FixedStep
from diffcli.errors import NumericalError


def matrix(tableau):
    n = len(tableau.c)
    return np.array([list(row) + [0.0] * (n - len(row)) for row in tableau.a])


def test_dormand_prince_is_scipys():
    published = scipy.integrate.RK45
    assert np.allclose(matrix(DOPRI5)[:6, :5], published.A, rtol=1e-14)
    assert np.allclose(DOPRI5.b[:6], published.B, rtol=1e-14) and DOPRI5.b[6] == 0
    assert np.allclose(DOPRI5.c[:6], published.C, rtol=1e-14)
    assert np.allclose(np.abs(DOPRI5.e), np.abs(published.E), rtol=1e-12)
    assert np.allclose(matrix(DOPRI5)[6], DOPRI5.b)  # its last stage is the next step's first


@pytest.mark.parametrize("tableau", [HEUN, RK4, DOPRI5], ids=["heun", "rk4", "dopri5"])
def test_order_conditions(tableau):
    b, c, a = np.array(tableau.b), np.array(tableau.c), matrix(tableau)
    assert np.allclose(a.sum(1), c)
    for k in range(tableau.order):
        assert np.isclose((b * c**k).sum(), 1 / (k + 1))
    if tableau.order >= 3:
        assert np.isclose(b @ a @ c, 1 / 6)
    if tableau.order >= 4:
        assert np.isclose((b * c) @ a @ c, 1 / 8) and np.isclose(b @ a @ a @ c, 1 / 24)


def logistic(y, tau):
    """y' = y (1 - y) cos(tau), with y = 1 / (1 + c e^-sin(tau))."""
    return (y[0] * (1 - y[0]) * tau.cos()[:, None],)


def exact(y0, tau):
    return 1 / (1 + (1 / y0 - 1) * math.exp(-math.sin(tau)))


Y0 = f64(0.1, 0.5, 0.9)[:, None]


@pytest.mark.parametrize("method, order", [("heun", 2), ("rk4", 4)])
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["up", "down"])
def test_fixed_steps_have_their_order(method, order, ends):
    start = exact(Y0, ends[0])
    e = []
    for steps in (20, 40):
        (y,), nfe = FixedStep(method, steps).solve(logistic, (start,), *ends)
        e.append((y - exact(Y0, ends[1])).norm())
        assert nfe.tolist() == [steps * order] * 3
    assert math.log2(e[0] / e[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("ends", [(0.0, 5.0), (5.0, 0.0)], ids=["up", "down"])
@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_adaptive_error_follows_tol(tol, ends):
    (y,), nfe = DormandPrince(tol).solve(logistic, (exact(Y0, ends[0]),), *ends)
    assert (y - exact(Y0, ends[1])).abs().max() < 50 * tol
    # evaluations grow with tol^(-1/5) once the steps are small
    assert (nfe <= 60 + 6 * 3 * tol**-0.2).all()


def test_evaluations_grow_as_a_fifth_order_method_does():
    """Like tol^(-1/5): tenfold over five digits."""

    def wave(y, tau):
        return (torch.stack([y[0][:, 1], -y[0][:, 0]], dim=1),)

    counts = [DormandPrince(tol).solve(wave, (f64([1.0, 0.0]),), 0.0, 30.0)[1].item() for tol in (1e-6, 1e-11)]
    assert math.log10(counts[1] / counts[0]) == pytest.approx(1.0, abs=0.1)


def stiff(y, tau):
    """Each item at a rate of its own; the state carries it."""
    x, rate = y[0][:, :1], y[0][:, 1:]
    return (torch.cat([rate * torch.cos(rate * tau[:, None]), 0 * x], dim=1),)


def test_each_item_has_its_own_steps():
    """A slow item beside a fast one takes as few evaluations as alone, and ends at the same bits."""
    y = torch.stack([torch.zeros(4), torch.tensor([0.5, 3.0, 40.0, 200.0])], dim=1).double()
    solver = DormandPrince(1e-6)
    (whole,), nfe = solver.solve(stiff, (y,), 0.0, 1.0)
    assert (nfe.diff() > 0).all() and nfe[3] > 10 * nfe[0]
    assert torch.allclose(whole[:, 0], torch.sin(y[:, 1]), atol=1e-4)
    for i in range(4):
        (alone,), n = solver.solve(stiff, (y[i : i + 1],), 0.0, 1.0)
        assert torch.equal(alone[0], whole[i]) and n.item() == nfe[i]


def test_every_part_is_held_to_its_scale():
    """The part with the tighter scale decides; `scales` are in units of tol."""

    def fn(y, tau):
        return torch.zeros_like(y[0]), torch.cos(20 * tau)[:, None]

    y = (torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    counts, errors = [], []
    for atol in (1e-3, 1.0, 1e3):
        (_, end), nfe = DormandPrince(1e-5).solve(fn, y, 0.0, 1.0, scales=[(1.0, 1.0), (atol, 0.0)])
        counts.append(nfe.item())
        errors.append(abs(end.item() - math.sin(20) / 20))
    assert counts[0] > counts[1] > counts[2]
    assert errors[0] < 1e-7 and errors[1] < 1e-4


def test_lands_on_the_end_exactly():
    seen = []

    def fn(y, tau):
        seen.append(tau.clone())
        return (-y[0],)

    DormandPrince(1e-6).solve(fn, (Y0,), 0.1, 0.7)
    assert max(t.max().item() for t in seen) == 0.7


def broken(y, tau):
    return (torch.where(tau[:, None] > 0.5, torch.nan, 1.0) * y[0],)


@pytest.mark.parametrize("solver", [DormandPrince(1e-5), FixedStep("rk4", 8)], ids=["rk45", "rk4"])
def test_a_nan_drift_is_an_error_that_names_lam_and_evaluations(solver):
    with pytest.raises(NumericalError, match=r"non-finite value.* at lam = 0\.\d+ after \d+ evaluations"):
        solver.solve(broken, (Y0,), 0.0, 1.0)


def test_a_nan_drift_at_the_start_is_an_error():
    with pytest.raises(NumericalError, match=r"non-finite value at lam = 2 after 1 evaluation "):
        DormandPrince(1e-5).solve(lambda y, tau: (torch.nan * y[0],), (Y0,), 2.0, 3.0)


def test_one_bad_item_is_enough():
    def fn(y, tau):
        return (torch.where(torch.tensor([[False], [True], [False]]), torch.nan, 1.0) * y[0],)

    with pytest.raises(NumericalError, match="lam"):
        DormandPrince(1e-5).solve(fn, (Y0,), 0.0, 1.0)


def test_too_few_evaluations_is_an_error_that_names_lam_and_their_number():
    with pytest.raises(NumericalError, match=r"tol = 1e-08 takes more than 20 evaluations, stopped at lam = 0\.\d+"):
        DormandPrince(1e-8, max_nfe=20).solve(logistic, (Y0,), 0.0, 5.0)


def test_a_pole_is_an_error_that_names_lam():
    """y' = y^2 leaves every bound at tau = 1."""
    with pytest.raises(NumericalError, match=r"lam = (1|0\.99\d*) after \d+ evaluations|non-finite"):
        DormandPrince(1e-8).solve(lambda y, tau: (y[0] ** 2,), (torch.ones(1, 1).double(),), 0.0, 2.0)
