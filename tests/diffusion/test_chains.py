"""DDPM and NCSN are choices of schedule and grid: their published formulas, from code that has no branch for them."""

import math

import pytest
import torch
from cases import Recorder, build, f64, generator, mixture_2d, normal, paths

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Levels, UniformLam
from diffcli.diffusion.samplers import DDIM, RK45, Ancestral, EulerMaruyama, sample
from diffcli.diffusion.schedule import DDPM, NCSN
from diffcli.diffusion.sde import VE, VP, Flow


class Given:
    """Noise that is what the test says, at every step."""

    def __init__(self, z):
        self.z = z

    def __call__(self, counter):
        return self.z


@pytest.mark.parametrize("betas", ["linear", "cosine", "scaled_linear"])
def test_an_ancestral_step_on_the_levels_is_ddpms(betas):
    """mu = (x - beta_i/sqrt(1 - abar_i) eps)/sqrt(1 - beta_i), and variance betatilde_i.  Ho et al. 2020, eq. 7 and 11."""
    T = 100
    chain = DDPM(T, betas, 0.1, 10.0)
    sde, sampler = VP(chain), Ancestral()
    model, x, z = Exact(sde, mixture_2d()), normal(0, 5, 2), normal(1, 5, 2)
    times = Levels()(sde, T - 1)
    abar = sde.alpha(sde.times) ** 2
    before = torch.cat([f64(1.0), abar[:-1]])
    beta = 1 - abar / before
    tilde = (1 - before) / (1 - abar) * beta
    plan = sampler.plan(sde, times)
    for k in range(T - 1):
        i = T - 1 - k  # of beta_i, from 0
        eps = model.eps(x, times[k])
        mean = (x - beta[i] / torch.sqrt(1 - abar[i]) * eps) / torch.sqrt(1 - beta[i])
        expected = mean + torch.sqrt(tilde[i]) * z
        found = sampler.step(model, x, k, plan, [], Given(z))
        # beta from the product itself has lost digits where it is small
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10), i


@pytest.mark.parametrize(
    ("sde", "levels"), [(VP(DDPM(40, beta_max=10.0)), 40), (VE(NCSN(25)), 25)], ids=["ddpm", "ncsn"]
)
def test_all_levels_are_walked_and_the_last_one_denoised(sde, levels):
    """One evaluation at each, from the largest: levels - 1 steps, and x0_hat at the smallest."""
    model = Recorder(Exact(sde, mixture_2d()))
    times = Levels()(sde, Levels().steps(sde))
    walk = Ancestral(), sde.sample_prior(normal(0, 3, 2)), times, Given(normal(1, 3, 2))
    x, _ = sample(model, *walk)
    assert sample(model.inner, *walk).nfe.tolist() == [levels] * 3
    seen = torch.stack([t for _, t in model.calls])
    assert torch.equal(seen, sde.times.flip(0))
    xt, t = model.calls[-1]
    assert torch.equal(x, model.inner(xt, t))


def test_the_chain_draws_its_data():
    """Mean and covariance of 4000 draws of DDPM with the exact score, to five standard errors and the chain's own bias."""
    sde, mixture, n = VP(DDPM(200)), mixture_2d(), 4000
    rng = generator(3)

    def noise(counter):
        return torch.randn(n, 2, dtype=torch.float64, generator=rng)

    x = sample(Exact(sde, mixture), Ancestral(), sde.sample_prior(noise(0)), Levels()(sde, 199), noise).x
    truth = mixture.sample(100_000, generator(4))[0]
    error = (truth.var(0) / n).sqrt()
    assert ((x.mean(0) - truth.mean(0)).abs() < 5 * error + 0.02).all()
    assert torch.allclose(x.T.cov(), truth.T.cov(), atol=0.1)


def test_any_sampler_walks_the_levels_and_any_grid_the_chain():
    """With sde=vp schedule=ddpm the PF-ODE's ends agree, whichever grid and solver took them there."""
    sde = VP(DDPM(300))
    model = Exact(sde, mixture_2d())
    start = sde.perturb(mixture_2d().sample(8, generator(0))[0], f64(1.0)[0], normal(1, 8, 2))
    exact = sample(model, RK45(1e-5), start, UniformLam()(sde, 1), None).x
    assert (sample(model, DDIM(), start, Levels()(sde, 299), None).x - exact).abs().max() < 0.05
    assert (sample(model, DDIM(), start, UniformLam()(sde, 300), None).x - exact).abs().max() < 0.05


@pytest.mark.parametrize("beta", [0.5, 8.0])
def test_an_euler_maruyama_step_of_vp_is_a_langevin_step_for_the_normal_law(beta):
    """Forward, x - h beta/2 x + sqrt(h beta) z, is x + gamma score + sqrt(2 gamma) z with gamma = h beta/2 and score = -x."""
    from diffcli.diffusion.schedule import Linear

    sde, h = VP(Linear(beta, beta)), 0.01
    x, z, t = normal(0, 50, 2), normal(1, 50, 2), f64(0.4)
    euler = x + h * sde.f(t) * x + (h * sde.g2(t)).sqrt() * z
    gamma = h * beta / 2
    assert torch.allclose(euler, x + gamma * -x + math.sqrt(2 * gamma) * z, rtol=1e-13, atol=1e-15)


def at_rest() -> GaussianMixture:
    """N(0, I): what VP does not change."""
    return GaussianMixture(f64(1.0), torch.zeros(1, 2), torch.eye(2)[None])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic", "sigmoid", "constant", "ddpm"])
def test_vp_keeps_unit_variance_and_its_flow_stands_still_there(schedule):
    """alpha^2 + sigma^2 = 1; on N(0, I) the PF-ODE's velocity is 0 while the reverse SDE, -beta/2 x back in time, moves."""
    sde = build("vp", schedule)
    t = torch.linspace(0.01, sde.t_max, 25, dtype=torch.float64)  # before, x and x0 cancel in what is the smaller
    assert torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14)
    x, model = normal(0, 25, 2), Exact(sde, at_rest())
    beta = sde.g2(t)[:, None]
    assert (model.velocity(x, t).abs() <= 1e-12 * beta).all()
    drift = sde.f(t)[:, None] * x - beta * model.score(x, t)
    assert torch.allclose(drift, beta / 2 * x, rtol=1e-12)


def test_the_reverse_sde_moves_and_keeps_the_law_at_rest():
    """Euler-Maruyama on N(0, I): each item goes elsewhere, all of them stay N(0, I) up to the step's own bias."""
    sde, n, rng = build("vp", "linear"), 4000, generator(2)

    def noise(counter):
        return torch.randn(n, 2, dtype=torch.float64, generator=rng)

    start = noise(0)
    x = sample(Exact(sde, at_rest()), EulerMaruyama(), start, UniformLam()(sde, 150), noise, last="stop").x
    assert torch.allclose(x.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.12)
    assert abs(torch.corrcoef(torch.stack([x[:, 0], start[:, 0]]))[0, 1]) < 0.1


@paths([("vp", "linear"), ("ve", "geometric"), ("vp", "ddpm"), ("drift",)])
def test_paths_of_the_ode_in_one_dimension_never_cross(sde):
    """Neighbours stay neighbours, from 300 starts to a mixture on the line."""
    line = GaussianMixture(f64(0.3, 0.5, 0.2), f64([-1.0], [0.8], [2.5]), f64([[0.01]], [[0.09]], [[0.02]]))
    model = Exact(sde, line)
    start = sde.prior_std * torch.linspace(-3, 3, 300, dtype=torch.float64)[:, None]
    seen = [start]
    sample(model, DDIM(), start, UniformLam()(sde, 300), None, callback=lambda i, x: seen.append(x))
    gaps = torch.stack(seen).squeeze(-1).diff(dim=1)
    assert len(gaps) == 301 and (gaps > 0).all()
    assert ((seen[-1] > 0) & (seen[-1] < 1.6)).double().mean() > 0.2  # they do part, into the components


def test_levels_serve_other_sdes_too():
    """A flow on DDPM's levels: the same lam, another path."""
    chain = DDPM(50, beta_max=10.0)
    flow, vp = Flow(chain), VP(chain)
    assert torch.allclose(flow.lam(chain.times), vp.lam(chain.times), rtol=1e-13)
    assert torch.equal(Levels()(flow, 49), chain.times.flip(0))
