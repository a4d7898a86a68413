"""Where the steps fall."""

import pytest
import torch
from cases import all_paths, build, every_path, f64

from diffcli.diffusion.grid import Karras, Levels, Scales, UniformLam, UniformT
from diffcli.diffusion.schedule import DDPM, NCSN
from diffcli.diffusion.sde import VE, VP

GRIDS = [UniformT, UniformLam, Karras, Scales]
every_grid = pytest.mark.parametrize("grid", GRIDS)


@every_grid
@all_paths
def test_ends_are_exact_and_times_fall(sde, grid):
    for steps in (1, 2, 37, 500):
        times = grid()(sde, steps)
        assert times.shape == (steps + 1,) and times.dtype == torch.float64
        assert times[0].item() == sde.t_max and times[-1].item() == max(sde.t_min, sde.t_stop)
        assert (times.diff() < 0).all()


@every_grid
def test_stops_at_its_own_t_min_or_the_sdes(grid):
    assert grid(t_min=0.0)(build("vp", "linear"), 4)[-1].item() == 1e-5
    assert grid(t_min=0.02)(build("vp", "linear"), 4)[-1].item() == 0.02
    assert grid(t_min=0.02)(build("vp", "linear", t_min=0.1), 4)[-1].item() == 0.1


@every_path
def test_uniform_in_t(sde):
    gaps = UniformT()(sde, 50).diff()
    assert torch.allclose(gaps, gaps.mean().expand(50), rtol=1e-10)


@every_path
def test_uniform_in_lam(sde):
    gaps = sde.lam(UniformLam()(sde, 50)).diff()
    assert (gaps > 0).all()
    assert torch.allclose(gaps, gaps.mean().expand(50), rtol=1e-9)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@every_path
def test_karras_formula(sde, rho):
    """sigma_i = (max^(1/rho) + i/N (min^(1/rho) - max^(1/rho)))^rho on sigma/alpha.  Karras et al. 2022, eq. 5."""
    times = Karras(rho=rho)(sde, 40)
    sigma = sde.sigma(times) / sde.alpha(times)
    i = torch.arange(41, dtype=torch.float64)
    low, high = sigma[-1] ** (1 / rho), sigma[0] ** (1 / rho)
    assert torch.allclose(sigma, (high + i / 40 * (low - high)) ** rho, rtol=1e-8)


def test_karras_has_rho_seven():
    sde = build("ve", "geometric")
    assert torch.equal(Karras()(sde, 10), Karras(rho=7.0)(sde, 10))


@every_grid
def test_refuses(grid):
    sde = build("vp", "cosine")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grid()(sde, 0)
    with pytest.raises(ValueError, match="t_min must lie below t_max = 0.9946"):
        grid(t_min=0.999)(sde, 4)
    for t_min in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"t_min must lie in \[0, 1\)"):
            grid(t_min=t_min)


def test_refuses_steps_that_float64_cannot_tell_apart():
    sde = build("vp", "linear", t_min=1 - 1e-14)
    assert f64(sde.t_min).item() < 1
    with pytest.raises(ValueError, match="too many"):
        UniformT()(sde, 1000)


# the training levels


def test_levels_are_the_training_levels_from_the_largest():
    for sde, n in ((VP(DDPM(1000)), 1000), (VE(NCSN(10)), 10), (VE(DDPM(60)), 60)):
        assert Levels().steps(sde) == n - 1
        assert torch.equal(Levels()(sde, n - 1), sde.times.flip(0))


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 998])
def test_fewer_steps_take_an_even_subset_with_both_ends(steps):
    sde = VP(DDPM(1000))
    times = Levels()(sde, steps)
    index = torch.round(times * 1000)
    assert torch.equal(index / 1000, times)  # levels, each as it is
    assert times.shape == (steps + 1,) and (times[0], times[-1]) == (1.0, 0.001)
    gaps = -index.diff()
    assert gaps.max() - gaps.min() <= 1


def test_levels_below_t_min_are_left_out():
    sde = VP(DDPM(100))
    assert Levels(t_min=0.1)(sde, 90)[-1].item() == 0.1
    assert Levels(t_min=0.1).steps(sde) == 90
    assert Levels(t_min=0.105).steps(sde) == 89
    assert Levels().steps(VP(DDPM(100), t_min=0.5)) == 50


@every_grid
def test_a_grid_that_takes_any_number_has_none_of_its_own(grid):
    assert grid().steps(VP(DDPM(100))) is None


def test_levels_refuse():
    with pytest.raises(ValueError, match="grid=levels needs a schedule with levels, schedule=ddpm or schedule=ncsn"):
        Levels()(build("vp", "linear"), 5)
    with pytest.raises(ValueError, match="grid=levels needs a schedule with levels"):
        Levels().steps(build("ou"))
    with pytest.raises(ValueError, match="there are 10 levels, so at most 9 steps, got 10"):
        Levels()(VE(NCSN(10)), 10)
    with pytest.raises(ValueError, match="fewer than two levels lie above t_min = 0.95"):
        Levels(0.95).steps(VE(NCSN(10)))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Levels()(VE(NCSN(10)), 0)
