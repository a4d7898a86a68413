"""Schedules against the formulas they are published with, at both ends, and the tables of the discrete chains."""

import itertools
import math

import pytest
import torch
from cases import SCHEDULES, f64
from mpmath import mp, mpf

from diffcli.diffusion.schedule import DDPM, EDM, NCSN, Constant, Geometric, Linear, Quadratic, Sigmoid, Table
from diffcli.diffusion.sde import OU, VE, VP


def relative(a, b):
    return ((a - b).abs() / b.abs()).max().item()


def grid(n=200):
    return torch.cat([torch.linspace(1e-5, 1, n), torch.logspace(-12, 0, n)]).double().clamp(1e-12, 1)


def test_constant_beta_is_an_ornstein_uhlenbeck_process():
    """theta = beta/2, s^2 = beta: of unit variance at rest."""
    vp, ou, t = VP(Constant(7.0)), OU(3.5, math.sqrt(7.0)), grid()
    for name in ("alpha", "sigma", "lam", "f", "g2"):
        assert torch.allclose(getattr(vp, name)(t), getattr(ou, name)(t), rtol=1e-11, atol=1e-13), name


def test_quadratic_has_the_square_of_a_line_as_beta():
    vp, t = VP(Quadratic(0.3, 15.0)), grid()
    beta = (math.sqrt(0.3) + t * (math.sqrt(15.0) - math.sqrt(0.3))) ** 2
    assert relative(vp.g2(t), beta) < 1e-10
    assert relative(vp.f(t), -beta / 2) < 1e-10


@pytest.mark.parametrize("cls", [Linear, Quadratic])
def test_a_beta_that_does_not_change_is_the_constant_one(cls):
    t = grid()
    assert relative(cls(4.0, 4.0)(t), Constant(4.0)(t)) < 1e-12
    assert relative(cls(4.0, 4.0).inverse(cls(4.0, 4.0)(t)), t) < 1e-10
    assert relative(cls(4.0, 4.0 * (1 + 1e-12))(t), Constant(4.0)(t)) < 1e-10


@pytest.mark.parametrize("tau", [0.3, 1.0, 20.0])
def test_sigmoid_is_the_normalised_sigmoid(tau):
    """gamma(t) of Jabri et al. 2022, app. B, with 50 digits: both ends lose most of float64's."""
    start, end = -3.0, 2.0
    schedule = Sigmoid(start, end, tau)
    t = torch.cat([grid(20), 1 - grid(20)[grid(20) < 0.5]])
    t = t[(t > 0) & (t <= schedule.t_max)]
    with mp.workdps(50):

        def v(u):
            return 1 / (1 + mp.exp(-(start + mpf(u) * (end - start)) / mpf(tau)))

        expected = [0.5 * mp.log((v(1) - v(u)) / (v(u) - v(0))) for u in t.tolist()]
    assert torch.allclose(schedule(t), f64(*map(float, expected)), rtol=1e-14, atol=1e-14)
    assert relative(schedule.inverse(schedule(t)), t) < 1e-12
    assert VP(schedule).alpha(f64(schedule.t_max)).item() == pytest.approx(0.0084, rel=1e-4)


def test_edm_has_sigma_linear():
    ve, t = VE(EDM(0.01, 30.0)), grid()
    sigma = 0.01 + t * 29.99
    assert relative(ve.sigma(t), sigma) < 1e-13
    assert relative(ve.g2(t), 2 * sigma * 29.99) < 1e-12
    assert relative(ve.time(ve.lam(t[t > 1e-3])), t[t > 1e-3]) < 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_ends_of_a_schedule_invert_beyond_its_range_of_use(name):
    """In l, which is what a step in lam needs: |l| up to 11, and 15 at the data's end where there is no floor of noise."""
    schedule = SCHEDULES[name]()
    floor = schedule(f64(0.0)).item()
    l = torch.linspace(max(schedule(f64(schedule.t_max)).item(), -5.0), min(floor, 15.0), 301, dtype=torch.float64)  # noqa: E741
    assert torch.allclose(schedule(schedule.inverse(l)), l, rtol=0, atol=1e-11)


# the chains


def product(betas):
    """alphabar_i = prod (1 - beta_j), one factor after the other, with 40 digits."""
    with mp.workdps(40):
        found, at = [], mpf(1)
        for beta in betas:
            at *= 1 - mpf(beta)
            found.append((float(at), float(1 - at)))
    return (f64(*column) for column in zip(*found, strict=True))


def rule(name, T):
    """The published betas."""
    i = torch.arange(T, dtype=torch.float64)
    if name == "linear":
        return 1e-4 * 1000 / T + i / (T - 1) * (0.02 - 1e-4) * 1000 / T
    if name == "scaled_linear":
        low, high = math.sqrt(1e-4 * 1000 / T), math.sqrt(0.02 * 1000 / T)
        return (low + i / (T - 1) * (high - low)) ** 2

    def alphabar(t):
        return torch.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2

    return (1 - alphabar((i + 1) / T) / alphabar(i / T)).clamp(max=0.999)


@pytest.mark.parametrize("T", [50, 1000])
@pytest.mark.parametrize("betas", ["linear", "cosine", "scaled_linear"])
def test_the_ddpm_table_is_the_product(betas, T):
    sde = VP(DDPM(T, betas))
    alphabar, rest = product(rule(betas, T).tolist())
    assert torch.equal(sde.times, torch.arange(1, T + 1, dtype=torch.float64) / T)
    exact = 1e-9 if betas == "cosine" else 1e-12  # the published cosine formula itself loses digits
    assert relative(sde.alpha(sde.times) ** 2, alphabar) < exact
    assert relative(sde.sigma(sde.times) ** 2, rest) < exact
    assert (sde.t_min, sde.t_max) == (1 / T, 1.0)


def test_a_list_of_betas_is_taken_as_it_is():
    betas = [0.1, 0.2, 0.05, 0.7]
    sde = VP(DDPM(betas=betas))
    alphabar, _ = product(betas)
    assert sde.times.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert relative(sde.alpha(sde.times) ** 2, alphabar) < 1e-14


def test_continuous_vp_tends_to_the_chain():
    """|alphabar_i - alpha(i/T)^2| falls as 1/T."""
    errors = []
    for T in (250, 500, 1000, 2000):
        chain, smooth = VP(DDPM(T)), VP(Linear())
        errors.append((chain.alpha(chain.times) ** 2 - smooth.alpha(chain.times) ** 2).abs().max().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1, 1, 1], abs=0.1)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("L", [2, 10, 232])
def test_the_ncsn_table_is_geometric_ve_at_its_levels(L):
    chain, smooth = VE(NCSN(L, 0.02, 30.0)), VE(Geometric(0.02, 30.0))
    assert torch.allclose(chain.times, torch.arange(L, dtype=torch.float64) / (L - 1), rtol=0, atol=1e-15)
    i = torch.arange(1, L + 1, dtype=torch.float64)
    published = 0.02 * (30 / 0.02) ** ((i - 1) / (L - 1))  # Song & Ermon 2019, sec. 4.1
    assert relative(chain.sigma(chain.times), published) < 1e-13
    t = grid()
    for name in ("sigma", "g2"):  # and between them
        assert relative(getattr(chain, name)(t), getattr(smooth, name)(t)) < 1e-11


def test_lam_is_linear_between_levels_and_its_slope_jumps_at_them():
    schedule = Table(f64(0.1, 0.4, 1.0), f64(3.0, 1.0, -2.0))
    t = f64(0.1, 0.25, 0.4, 0.55, 1.0)
    assert torch.allclose(schedule(t), f64(3.0, 2.0, 1.0, 0.25, -2.0), rtol=1e-15)
    assert torch.allclose(schedule.inverse(schedule(t)), t, rtol=1e-15)
    sde = VE(schedule)
    assert torch.allclose(sde.dlam(f64(0.2, 0.3999, 0.4001)), f64(-20 / 3, -20 / 3, -5.0), rtol=1e-14)
    assert schedule(t.view(5, 1)).shape == (5, 1) and schedule(t[0]).shape == ()


@pytest.mark.parametrize("name", ["ddpm", "ncsn"])
def test_tables_stay_float64_and_out_of_the_state_dict(name):
    schedule = SCHEDULES[name]()
    t = grid()
    before = schedule(t), schedule.inverse(t)
    for cast in (schedule.float(), schedule.half(), schedule.to(torch.bfloat16), schedule.cpu()):
        assert {b.dtype for b in cast.buffers()} == {torch.float64} and len(list(cast.buffers())) == 3
        assert torch.equal(cast(t), before[0]) and torch.equal(cast.inverse(t), before[1])
    assert not schedule.state_dict()


REFUSED = {
    "constant": (lambda: Constant(0.0), "beta must be above 0, got 0.0"),
    "quadratic": (lambda: Quadratic(0.0), "beta_min must be above 0, got 0.0"),
    "quadratic max": (lambda: Quadratic(2.0, 1.0), "beta_max must be at least beta_min = 2.0, got 1.0"),
    "tau": (lambda: Sigmoid(tau=0.0), "tau must be above 0, got 0.0"),
    "start": (lambda: Sigmoid(1.0, 1.0), "end must be above start = 1.0, got 1.0"),
    "narrow": (lambda: Sigmoid(tau=0.001), "end - start must be below 600 tau"),
    "edm": (lambda: EDM(0.0), "sigma_min must be above 0, got 0.0"),
    "edm max": (lambda: EDM(1.0, 0.5), "sigma_max must be above sigma_min = 1.0, got 0.5"),
    "ncsn": (lambda: NCSN(1), "L must be at least 2, got 1"),
    "ncsn min": (lambda: NCSN(10, -1.0), "sigma_min must be above 0, got -1.0"),
    "ddpm T": (lambda: DDPM(1), "T must be at least 2, got 1"),
    "ddpm beta": (lambda: DDPM(20), "T = 20 is too small: beta_T would be 1, and must be below 1"),
    "ddpm name": (lambda: DDPM(betas="squared"), "betas must be one of linear, cosine, scaled_linear or a list"),
    "ddpm list": (lambda: DDPM(betas=[0.1, 1.0]), "every one of betas must lie between 0 and 1"),
    "ddpm one": (lambda: DDPM(betas=[0.1]), "betas must be at least two numbers, got 1"),
    "auto geometric": (lambda: Geometric(sigma_max="auto"), "sigma_max=auto needs data to measure it on"),
    "auto edm": (lambda: EDM(sigma_max="auto"), "sigma_max=auto needs data to measure it on"),
    "auto ncsn": (lambda: NCSN(sigma_max="auto"), "sigma_max=auto needs data to measure it on"),
    "table rises": (lambda: Table(f64(0.0, 1.0), f64(0.0, 1.0)), "the levels of a table must fall as t rises"),
    "table back": (lambda: Table(f64(1.0, 0.0), f64(1.0, 0.0)), "the times of a table must rise in [0, 1]"),
    "table one": (lambda: Table(f64(1.0), f64(1.0)), "a table needs at least two levels"),
    "before": (lambda: VP(DDPM(100), 1e-3), "t_min = 0.001 lies before the first level, at t = 0.01"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_sentence(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        make()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
