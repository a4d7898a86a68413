"""SDEs of a user's own functions: a path or a drift that is a known one gives back all of it."""

import math

import pytest
import torch
from cases import build, f64
from torch import nn

from diffcli.diffusion.numeric import invert
from diffcli.diffusion.schedule import Geometric
from diffcli.diffusion.sde import OU, VE, Drift, Path

BETA, B = "(0.1 + 19.9*t)", "(0.1*t + 9.95*t**2)"
KNOWN = {  # the SDE, its alpha and sigma, its f and g, sigma_0
    "vp": (build("vp", "linear"), f"exp(-{B}/2)", f"sqrt(1 - exp(-{B}))", f"-{BETA}/2", f"sqrt{BETA}", 0.0),
    "subvp": (
        build("subvp", "linear"), f"exp(-{B}/2)", f"1 - exp(-{B})", f"-{BETA}/2", f"sqrt({BETA}*(1 - exp(-2*{B})))", 0.0,
    ),
    "ve": (VE(Geometric(0.01, 50.0)), 1.0, "0.01*5000**t", 0.0, "0.01*5000**t*sqrt(2*log(5000))", 0.01),
    "edm": (build("ve", "edm"), 1.0, "0.002 + 79.998*t", 0.0, "sqrt(2*(0.002 + 79.998*t)*79.998)", 0.002),
    "ou": (OU(), "exp(-5*t)", "sqrt(1 - exp(-10*t))", -5.0, "sqrt(10)", 0.0),
    "flow": (build("flow", "logit"), "1 - t", "t", "-1/(1 - t)", "sqrt(2*t/(1 - t))", 0.0),
}  # fmt: skip
every_known = pytest.mark.parametrize("name", KNOWN)
NAMES = ("alpha", "sigma", "lam", "f", "g2", "dlam", "dlog_sigma")


def times(sde, n=300):
    first = max(sde.t_min, 1e-5)
    t = torch.cat([torch.linspace(0, 1, n), torch.logspace(-5, 0, n)]).double() * sde.t_max
    return t.clamp(first, sde.t_max).unique()


def steady(t, name, those, start=1e-3):
    """The times from which 1 - exp(-B), as those write it, has its digits."""
    return t[t >= start] if name in those else t


def assert_same(found, known, t, rel):
    for name in NAMES:
        a, b = getattr(found, name)(t), getattr(known, name)(t)
        # where lam or dlog_sigma goes through 0 the error is that of the numbers around it
        assert ((a - b).abs() <= rel * (b.abs() + (name in ("lam", "dlog_sigma")))).all(), (name, (a - b).abs().max())


@every_known
def test_a_path_gives_f_and_g_of_the_closed_form(name):
    known, alpha, sigma, *_ = KNOWN[name]
    found = Path(alpha, sigma)
    assert_same(found, known, steady(times(known), name, ("vp", "subvp", "ou")), 1e-10)


@every_known
def test_a_drift_gives_alpha_and_sigma_of_the_closed_form(name):
    known, _, _, f, g, sigma_0 = KNOWN[name]
    found = Drift(f, g, sigma_0)
    assert (found.t_min, found.t_max) == (known.t_min, known.t_max)
    assert_same(found, known, steady(times(known), name, ("subvp",)), 1e-10 if name == "subvp" else 1e-11)


@every_known
def test_f_and_g_of_a_drift_are_the_users_own(name):
    known, _, _, f, g, sigma_0 = KNOWN[name]
    found, t = Drift(f, g, sigma_0), times(known)
    assert torch.equal(found.f(t), found.own_f(t)) and torch.equal(found.g2(t), found.own_g(t) ** 2)


@every_known
def test_time_is_exact_to_round_off(name):
    """As far as lam itself tells two times apart."""
    _, alpha, sigma, f, g, sigma_0 = KNOWN[name]
    for sde, those in ((Path(alpha, sigma), ("vp", "subvp", "ou")), (Drift(f, g, sigma_0), ("subvp",))):
        t = steady(times(sde), name, those, 0.1)
        lam = sde.lam(t)
        error = (sde.time(lam) - t).abs()
        assert (error <= 1e-15 * t + 1e-14 * (1 + lam.abs()) / sde.dlam(t).abs()).all()
        assert torch.equal(sde.time(f64(1e3, -1e3)), f64(sde.t_min, sde.t_max))
        assert sde.time(lam[3]).shape == () and sde.time(lam[:4].view(2, 2)).shape == (2, 2)


def test_a_sharp_bend_is_integrated():
    """g rises within a hundredth of the range: panels of one width would not see it."""
    g = "sqrt(1 + 50*exp(-(t - 0.371)**2*50000))"
    found = Drift(0.0, g)
    t = f64(0.2, 0.365, 0.371, 0.38, 1.0)

    def area(x):  # of the bell, from 0
        return 50 * math.sqrt(math.pi / 50000) / 2 * (math.erf(math.sqrt(50000) * (x - 0.371)) + 1)

    expected = f64(*(math.sqrt(x + area(x)) for x in t.tolist()))
    assert torch.allclose(found.sigma(t), expected, rtol=1e-12)


def test_invert_finds_every_root():
    """Steep, flat and bent functions, from a wide bracket."""
    y = torch.linspace(-5, 5, 101, dtype=torch.float64)
    wide = torch.full_like(y, 1e3)
    for fn, slope, inverse in (
        (lambda x: -(x**3) - x, lambda x: -3 * x**2 - 1, None),
        (lambda x: -torch.asinh(1e6 * x), lambda x: -1e6 / torch.sqrt(1 + 1e12 * x**2), lambda y: -torch.sinh(y) / 1e6),
        (lambda x: 3 - x, lambda x: -torch.ones_like(x), lambda y: 3 - y),
    ):
        found = invert(lambda x, fn=fn, slope=slope: (fn(x), slope(x)), y, -wide, wide)
        assert torch.allclose(fn(found), y, rtol=1e-14, atol=1e-15)
        assert inverse is None or torch.allclose(found, inverse(y), rtol=1e-13, atol=1e-15)


class Alpha(nn.Module):
    """A user's class."""

    def __init__(self, power: float = 2.0):
        super().__init__()
        self.power = power

    def forward(self, t):
        return 1 - t**self.power


class Wrong(nn.Module):
    def forward(self, t):
        return 1.0


def test_a_class_is_as_good_as_an_expression():
    classes, text = Path(Alpha(), "t"), Path("1 - t**2", "t")
    assert_same(classes, text, times(text), 1e-14)
    assert (classes.t_min, classes.t_max) == (1e-5, 0.999)


def test_the_range_goes_as_far_as_there_are_noise_and_data():
    ranges = {(p.t_min, p.t_max) for p in (Path("1 - t", "t"), Path("cos(pi/2*t)", "sin(pi/2*t)"))}
    assert ranges == {(1e-5, 0.999)}  # cos(pi/2) in float64 is 6e-17, not 0
    floor = Path("exp(-5*t)", "sqrt(1.01 - exp(-10*t))")
    assert (floor.t_min, floor.t_max) == (0.0, 1.0)
    assert (Path("1 - t", "t", 0.01, 0.9).t_min, Path("1 - t", "t", 0.01, 0.9).t_max) == (0.01, 0.9)
    assert (Drift("-1", "1", 0.1).t_min, Drift("-1", "1").t_min) == (0.0, 1e-5)


REFUSED = {
    "alpha negative": (lambda: Path("0.5 - t", "t"), "alpha must be above 0, and is not at t = 0.5"),
    "sigma zero": (lambda: Path("1", "t - 0.2", 0.1), "sigma must be above 0, and is not at t = 0.1"),
    "lam rises": (lambda: Path("1", "1.1 + sin(6*t)"), "lam = log(alpha/sigma) must fall as t rises, and does not at t = 0.26"),
    "lam flat": (lambda: Path(1.0, 1.0), "lam = log(alpha/sigma) must fall as t rises, and does not at t = 0"),
    "infinite": (lambda: Path("1", "9**9**9*t"), "lam = log(alpha/sigma) is not finite at t = 1e-05"),
    "range": (lambda: Path("1 - t", "t", 0.5, 0.4), "0 <= t_min < t_max <= 1, got 0.5 and 0.4"),
    "beyond": (lambda: Path("2 - t", "t", 0.1, 1.5), "0 <= t_min < t_max <= 1, got 0.1 and 1.5"),
    "path t_min": (lambda: Path("1 - t", "t", 2.0), "0 <= t_min < t_max <= 1, got 2.0 and 0.999"),
    "name": (lambda: Path("1 - s", "t"), "alpha: the expression '1 - s' has the name 's'"),
    "sigma name": (lambda: Path("1", "tt"), "sigma: the expression 'tt' has the name 'tt'"),
    "not a tensor": (lambda: Path(Wrong(), "t"), "alpha must map a float64 tensor of times to one of its shape"),
    "f": (lambda: Drift("x", "1"), "f: the expression 'x' has the name 'x'"),
    "g": (lambda: Drift("1", "1 +"), "g: the expression '1 +' cannot be read"),
    "no noise": (lambda: Drift("-1", "0"), "lam = log(alpha/sigma) is not finite at t = 1e-05"),
    "no noise, floor": (lambda: Drift("-1", 0.0, 0.1), "must fall as t rises, and does not at t = 0"),
    "sigma_0": (lambda: Drift("-1", "1", -0.1), "sigma_0 must be at least 0, got -0.1"),
    "not finite": (lambda: Drift("log(t - 0.3)", "1"), "f and g must be finite, and are not near t = 0"),
    "rough": (lambda: Drift("1/(t - 0.3)", "1"), "near t = 0.3"),
    "drift t_max": (lambda: Drift("-1", "1", t_max=2.0), "t_max must lie in (0, 1], got 2.0"),
    "theta": (lambda: OU(0.0), "theta must be above 0, got 0.0"),
    "s": (lambda: OU(s=-1.0), "s must be above 0, got -1.0"),
    "horizon": (lambda: OU(horizon=0.0), "horizon must be above 0, got 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_sentence(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        make()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ou_is_its_definition():
    """dx = -theta x du + s dw up to u = horizon; the prior is the law at rest."""
    ou, t = OU(2.0, 3.0, 1.5), times(OU())
    assert torch.allclose(ou.alpha(t), torch.exp(-3 * t), rtol=1e-14)
    assert torch.allclose(ou.sigma(t) ** 2, 9 / 4 * (1 - torch.exp(-6 * t)), rtol=1e-9)
    assert torch.allclose(ou.f(t), torch.full_like(t, -3.0), rtol=1e-14)
    assert torch.allclose(ou.g2(t), torch.full_like(t, 13.5), rtol=1e-10)
    assert ou.prior_std == pytest.approx(1.5, rel=1e-14)
