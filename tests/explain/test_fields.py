"""Levels, densities and score errors that the pictures show."""

import math

import pytest
import torch
from processes import every_process, f64

from diffcli.data.mixture import Mixture
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.samplers import DPM2
from diffcli.diffusion.schedule import Geometric, Linear
from diffcli.diffusion.sde import VE, VP
from diffcli.explain.fields import (
    LEVELS,
    bandwidth,
    box,
    in_rows,
    lattice,
    law_of,
    reverse_path,
    score_error,
    shown_times,
)
from diffcli.explain.tables import coefficients, fine_times


class Scaled(Exact):
    """The exact score times a factor."""

    factor = 1.1

    def parts(self, xt, t, **cond):
        c_skip, c_out, score = super().parts(xt, t, **cond)
        return c_skip, c_out, self.factor * score


@pytest.fixture(scope="module")
def mixture():
    return Mixture().mixture


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_score_error_is_0_for_the_exact_score_and_known_for_a_wrong_one(mixture, t):
    sde = VP(Linear())
    assert score_error(Exact(sde, mixture), Exact(sde, mixture), f64(t)[0], 500, generator()) == 0
    assert score_error(Scaled(sde, mixture), Exact(sde, mixture), f64(t)[0], 500, generator()) == pytest.approx(0.1)


def test_score_error_of_another_law_is_seen(mixture):
    sde = VP(Linear())
    other = Exact(sde, Mixture(name="two").mixture)
    assert score_error(other, Exact(sde, mixture), f64(0.1)[0], 500, generator()) > 0.5


@every_process
def test_shown_times_rise_within_the_range(sde):
    for std in (0.3, 1.5, 1e4):
        times = shown_times(sde, std)
        assert len(times) == 4 and (times.diff() > 0).all()
        assert times[0] >= sde.t_min - 1e-12 and times[-1] <= sde.t_max + 1e-12
    ratio = sde.sigma(shown_times(sde, 1.5)) / sde.alpha(shown_times(sde, 1.5))
    assert ratio.tolist() == pytest.approx([1.5 * level for level in LEVELS], rel=1e-6)


@every_process
def test_coefficients_are_the_sdes_own(sde):
    t = fine_times(sde)
    assert t[0] == sde.t_min and t[-1] == sde.t_max and (t.diff() > 0).all()
    found = coefficients(sde, t)
    assert torch.equal(found["alpha"], sde.alpha(t)) and torch.equal(found["sigma"], sde.sigma(t))
    assert torch.equal(found["lam"], sde.lam(t)) and torch.equal(found["f"], sde.f(t))
    assert torch.allclose(found["g"] ** 2, sde.g2(t), rtol=1e-12)
    assert all(values.isfinite().all() for values in found.values())


def test_a_law_that_is_not_known_is_estimated(mixture):
    sde, (x, _) = VP(Linear()), mixture.sample(3000, generator())
    exact, said = law_of(sde, x, mixture)
    assert said == "exact" and exact.mixture is mixture
    law, said = law_of(sde, x, None)
    assert said.startswith("KDE of 1,000 items, h = ")
    at = f64(0.3)[0]
    axis = lattice(f64(0, 0), 8.0, 81)
    mass = in_rows(lambda a: law.log_prob(a, at), axis).exp().sum().item() * 0.2**2
    assert mass == pytest.approx(1, abs=1e-3)
    assert score_error(law, exact, at, 1000, generator(1)) < 0.2


def test_bandwidth_is_that_of_the_parts():
    """Two far narrow clusters: Silverman's rule would join them, the bandwidth chosen is of the clusters' own size."""
    x = 0.1 * torch.randn(400, 1, dtype=torch.float64, generator=generator())
    near = bandwidth(x)
    far = bandwidth(torch.cat([x[:200] - 3, x[200:] + 3]))
    assert far < 2.5 * near < 0.2
    assert near == pytest.approx(0.1 * (4 / (3 * 400)) ** 0.2, rel=0.6)


def test_box_holds_the_points(mixture):
    for sde in (VP(Linear()), VE(Geometric())):
        x0, _ = mixture.sample(2000, generator())
        for t in f64(0.1, 0.5, 1.0):
            x = sde.perturb(x0, t, torch.randn(x0.shape, dtype=torch.float64, generator=generator(1)))
            centre, half = box(sde, x0, t)
            assert ((x - centre).abs() < half).all(1).double().mean() > 0.92


def test_lattice_is_in_rows_from_the_lowest():
    points = lattice(f64(1.0, 5.0), 2.0, 3).view(3, 3, 2)
    assert points[0, :, 0].tolist() == [-1, 1, 3] and (points[0, :, 1] == 3).all()
    assert (points[-1, :, 1] == 7).all()


def test_reverse_path_ends_where_the_sampler_does(mixture):
    sde = VP(Linear())
    start, times = torch.randn(4, 2, dtype=torch.float64, generator=generator()), torch.linspace(1, 0.01, 30).double()
    path = reverse_path(Exact(sde, mixture), DPM2(), start, times, None)
    assert path.shape == (30, 4, 2) and torch.equal(path[0], start)
    assert torch.equal(path[-1], DPM2().walk(Exact(sde, mixture), start, times, None).x)
    assert mixture.log_prob(path[-1]).mean() > -math.log(4 * math.pi) - 3  # on the data, where it started in the prior
