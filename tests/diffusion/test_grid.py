"""Where the steps fall."""

import pytest
import torch
from cases import build, every_path, f64

from diffcli.diffusion.grid import Karras, UniformLam, UniformT

GRIDS = [UniformT, UniformLam, Karras]
every_grid = pytest.mark.parametrize("grid", GRIDS)


@every_grid
@every_path
def test_ends_are_exact_and_times_fall(sde, grid):
    for steps in (1, 2, 37, 500):
        times = grid()(sde, steps)
        assert times.shape == (steps + 1,) and times.dtype == torch.float64
        assert times[0].item() == sde.t_max and times[-1].item() == max(sde.t_min, 1e-3)
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
