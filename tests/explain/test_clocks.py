"""Each map to another program's clock, undone by that program's own formula: its noise-to-data ratio there is ours."""

import math

import pytest
import torch
from processes import PROCESSES, every_process, f64
from scipy.integrate import quad

from diffcli.data.mixture import Mixture
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.guidance import Rescaled
from diffcli.explain.clocks import clocks, position


def vp_ratio(t):
    """sigma/alpha of score_sde's VP at t, its marginal_prob with the integral of beta done by quadrature."""
    b = quad(lambda u: 0.1 + u * (20.0 - 0.1), 0, t)[0]
    return math.sqrt(math.expm1(b))


def ddpm_ratios():
    """sigma/alpha of DDPM's levels by its own product."""
    alphabar, ratios = 1.0, []
    for i in range(1000):
        alphabar *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        ratios.append(math.sqrt((1 - alphabar) / alphabar))
    return ratios


def ours(sde, n=60):
    """Times and their sigma/alpha."""
    t = sde.time(torch.linspace(*sde.lam(f64(sde.t_min, sde.t_max)).tolist(), n, dtype=torch.float64))
    return t, (sde.sigma(t) / sde.alpha(t)).tolist()


def held(values, ratios, low, high, back, rel=1e-7):
    """Where the ratio lies inside the other clock's range its value gives it back, elsewhere there is none."""
    seen = 0
    for value, ratio in zip(values.tolist(), ratios, strict=True):
        if low * (1 + 1e-6) < ratio < high * (1 - 1e-6):
            assert back(value) == pytest.approx(ratio, rel=rel)
            seen += 1
        elif not low * (1 - 1e-6) < ratio < high * (1 + 1e-6):
            assert math.isnan(value)
    assert seen


@every_process
def test_score_sde(sde):
    t, ratios = ours(sde)
    found = clocks(sde, t)
    held(found["score_sde_vp_t"], ratios, vp_ratio(1e-5), vp_ratio(1.0), vp_ratio)
    low, high = 0.01 * 5000**1e-5, 50.0
    held(found["score_sde_ve_t"], ratios, low, high, lambda u: 0.01 * (50 / 0.01) ** u)
    held(found["score_sde_ve_i"], ratios, 0.01, 50.0, lambda i: math.exp(math.log(0.01) + i / 999 * math.log(5000)))


@every_process
def test_ddpm_edm_and_flow(sde):
    t, ratios = ours(sde)
    found, levels = clocks(sde, t), ddpm_ratios()

    def between(i):  # linear in the log-SNR between two levels
        k = min(int(i), 999)
        return levels[k - 1] ** (k + 1 - i) * levels[k] ** (i - k)

    held(found["ddpm_i"], ratios, levels[0], levels[-1], between)
    assert found["edm_sigma"].tolist() == pytest.approx(ratios, rel=1e-9)
    assert found["edm_c_noise"].tolist() == pytest.approx([0.25 * math.log(r) for r in ratios], abs=1e-9)
    # x = u data + (1 - u) noise
    assert [(1 - u) / u for u in found["flow_t"].tolist()] == pytest.approx(ratios, rel=1e-6)
    assert found["snr_db"].tolist() == pytest.approx([-20 * math.log10(r) for r in ratios], abs=1e-8)
    assert found["log_snr_nats"].tolist() == pytest.approx([-2 * math.log(r) for r in ratios], abs=1e-9)


@every_process
def test_factors_take_our_state_to_theirs(sde):
    """factor * (alpha, sigma) is the other program's own (alpha, sigma)."""
    t, _ = ours(sde)
    found, alpha, sigma = clocks(sde, t), sde.alpha(t), sde.sigma(t)
    assert torch.allclose(found["x_edm_over_x"] * alpha, torch.ones_like(t))
    assert torch.allclose(found["x_edm_over_x"] * sigma, found["edm_sigma"])
    assert torch.allclose(found["x_flow_over_x"] * alpha, found["flow_t"])
    assert torch.allclose(found["x_flow_over_x"] * sigma, 1 - found["flow_t"])
    inside = ~found["score_sde_vp_t"].isnan()
    u = found["score_sde_vp_t"][inside]
    log_mean = -0.25 * u**2 * (20 - 0.1) - 0.5 * u * 0.1  # score_sde's marginal_prob
    assert torch.allclose((found["x_vp_over_x"] * alpha)[inside], log_mean.exp(), rtol=1e-6)
    assert torch.allclose((found["x_vp_over_x"] * sigma)[inside], torch.sqrt(-torch.expm1(2 * log_mean)), rtol=1e-6)


def test_a_chain_knows_its_own_levels():
    for name in ("vp-ddpm", "ve-ncsn"):
        sde = PROCESSES[name]
        i = torch.arange(1, len(sde.times) + 1, dtype=torch.float64)
        assert torch.allclose(clocks(sde, sde.times)["own_i"], i, atol=1e-9)
    found = clocks(PROCESSES["vp-ddpm"], PROCESSES["vp-ddpm"].times)
    assert torch.allclose(found["ddpm_i"], found["own_i"], atol=1e-6)  # the standard chain is DDPM's own
    assert "own_i" not in clocks(PROCESSES["vp-linear"], f64(0.5))


def test_a_clock_of_ones_own_is_the_identity():
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    assert torch.allclose(clocks(PROCESSES["vp-linear"], t)["score_sde_vp_t"], t, rtol=1e-10)
    u = t * 0.999
    assert torch.allclose(clocks(PROCESSES["flow-logit"], u)["flow_t"], 1 - u, rtol=1e-10)


def test_position():
    levels = f64(0.0, 1.0, 4.0)
    assert position(levels, f64(0.0, 0.5, 1.0, 2.5, 4.0)).tolist() == [0, 0.5, 1, 1.5, 2]
    assert position(levels, f64(-0.1, 4.1)).isnan().all()


def test_the_same_denoiser_answers_at_the_mapped_point():
    """x0_hat of the exact VP model at (x_VP, t_VP) is that of the exact VE model at (x, t)."""
    mixture, ve, vp = Mixture().mixture, PROCESSES["ve-geometric"], PROCESSES["vp-linear"]
    t = f64(0.62)
    x = mixture.sample(5, torch.Generator().manual_seed(0))[0]
    found = clocks(ve, t)
    there = Exact(vp, mixture)(found["x_vp_over_x"] * x, found["score_sde_vp_t"][0])
    assert torch.allclose(there, Exact(ve, mixture)(x, t[0]), rtol=1e-6)
    assert torch.allclose(there, Rescaled(ve, Exact(vp, mixture))(x, t[0]), rtol=1e-6)
