"""Samplers with noise: their laws on one Gaussian, without Monte Carlo, their twins without noise, and their identities."""

import numpy as np
import pytest
import torch
from affine_walk import law_errors, slope
from cases import PATHS, build, f64, mixture_2d, no_noise, normal, one_gaussian, paths, usual_paths
from sampler_cases import make

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Karras, UniformLam
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.samplers import (
    DDIM,
    Ancestral,
    Deis,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    EDMChurn,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    ReverseDiffusion,
    SASolver,
    UniPC,
    sample,
)
from diffcli.diffusion.schedule import Geometric
from diffcli.diffusion.sde import VE

IN_T = {  # that follow the SDE's own coefficients or the forward step's: name -> sampler of eta
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
}
IN_LAM = {  # exact while x0_hat is constant, and the same on any path
    "ddim": DDIM,
    "euler_ancestral": EulerAncestral,
    "dpmpp_sde": DPMppSDE,
    "dpmpp_2m_sde": DPMpp2MSDE,
    "dpmpp_2m_sde-heun": lambda eta: DPMpp2MSDE(eta, "heun"),
    "dpmpp_3m_sde": DPMpp3MSDE,
    "dpmpp_3m_sde-released": lambda eta: DPMpp3MSDE(eta, released=True),
    "sa_solver": SASolver,
    "sa_solver-1": lambda eta: SASolver(eta, 1, 0),
    "sa_solver-12": lambda eta: SASolver(eta, 1, 2),
}
SAMPLERS = IN_T | IN_LAM
NAMED = ["euler_maruyama", "reverse_diffusion", "ancestral", "euler_ancestral", "sa_solver"]
NAMED += ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]  # as they are in their yaml files
USUAL = [("vp", "linear"), ("ve", "geometric"), ("flow", "logit"), ("vp", "ddpm")]
REST = [("ve", "edm"), *(p for p in PATHS if p not in [*USUAL, ("ve", "edm")])]


def on(pairs, heavy=()):
    """Parametrises a test over SDEs, some of them only in the heavy suite."""
    named = [(p, []) for p in pairs] + [(p, [pytest.mark.heavy]) for p in heavy]
    return pytest.mark.parametrize("sde", [pytest.param(build(*p), id="-".join(p), marks=m) for p, m in named])


every_path = on(USUAL, REST)


def each(samplers):
    return pytest.mark.parametrize("sampler", [pytest.param(s, id=n) for n, s in samplers.items()])


def check_weak_order(sampler, sde):
    found, error = slope(sampler, sde, one_gaussian(), UniformLam(), 80)
    assert found > sampler.order - 0.15 and error < {1: 0.2, 2: 0.03}[sampler.order]
    return found


@each({n: make(n) for n in NAMED} | {"edm_churn": EDMChurn(10)})
@on(USUAL[:3], REST)
def test_weak_order(sde, sampler):
    check_weak_order(sampler, sde)


@pytest.mark.parametrize(
    "name, eta", [*((n, 0.5) for n in SAMPLERS), ("dpmpp_sde", 1.5), ("dpmpp_3m_sde", 1.5), ("sa_solver", 1.5)]
)
def test_weak_order_with_less_and_more_noise(name, eta):
    sampler = SAMPLERS[name](eta)
    assert check_weak_order(sampler, build("vp", "linear")) < sampler.order + 0.4


MEET = {"ancestral": Ancestral(), "edm_churn": EDMChurn(), "euler_ancestral-5": EulerAncestral(5)}


@each(MEET | {n: s(0.8) for n, s in IN_LAM.items()})
@every_path
def test_data_at_one_point_are_met_exactly(sde, sampler):
    """There x0_hat is constant, so the mean and the covariance are right to round-off, of any steps and none of them equal."""
    point = GaussianMixture(f64(1.0), f64([0.7, -1.2]), 1e-30 * torch.eye(2, dtype=torch.float64)[None])
    for steps in (1, 4):
        mean, cov = law_errors(sampler, sde, point, Karras()(sde, steps))
        assert mean < 1e-8 and cov < 1e-8


@paths([("vp", "linear"), ("vp", "cosine"), ("vp", "ddpm"), ("ou",)])
def test_the_large_variance_keeps_the_stationary_law(sde):
    """On N(0, I), where no step changes the law, whatever its size: x_s has variance `a^2 + std^2 = 1`."""
    normal_data = GaussianMixture(f64(1.0), torch.zeros(1, 2), torch.eye(2, dtype=torch.float64)[None])
    for steps in (1, 5):
        mean, cov = law_errors(Ancestral("large"), sde, normal_data, UniformLam()(sde, steps))
        assert mean < 1e-12 and cov < 1e-9
        assert law_errors(Ancestral("small"), sde, normal_data, UniformLam()(sde, steps))[1] > 0.01


TWINS = {
    "euler_maruyama": (EulerMaruyama(0), Euler("t")),
    "euler_ancestral": (EulerAncestral(0), Euler("sigma")),
    "ddim": (DDIM(0), Euler("sigma")),
    "dpmpp_sde": (DPMppSDE(0), DPMpp2S()),
    "dpmpp_2m_sde": (DPMpp2MSDE(0), DPMpp2M()),
    "dpmpp_2m_sde-heun": (DPMpp2MSDE(0, "heun"), Deis(2, "x0")),
    "dpmpp_2m_sde-final": (DPMpp2MSDE(0, final=1), DPMpp2M(final=1)),
    "dpmpp_3m_sde": (DPMpp3MSDE(0), DPMpp3M()),
    "dpmpp_3m_sde-released": (DPMpp3MSDE(0, released=True), DPMpp3M(released=True)),
    "sa_solver": (SASolver(0), UniPC(3, variant="exact")),
    "sa_solver-predictor": (SASolver(0, 3, 0), Deis(3, "x0")),
    "edm_churn": (EDMChurn(0), Heun("sigma")),
}


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
@every_path
def test_without_noise_each_is_its_ode_twin(sde, twins):
    """To round-off, on steps of all lengths; it asks for no noise and says that it is an ODE sampler."""
    model, x = Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 6, 2))
    assert twins[0].kind == "ode"
    for steps in (1, 7):
        a, b = (sample(model, s, x, Karras()(sde, steps), no_noise, "stop").x for s in twins)
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


@pytest.mark.parametrize("name", SAMPLERS)
@usual_paths
def test_little_noise_is_little_change(sde, name):
    """x of eta tends to that of eta = 0, in proportion to eta."""
    model, x, times = Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 6, 2)), UniformLam()(sde, 9)
    none, little, less = (
        sample(model, SAMPLERS[name](eta), x, times, lambda c: normal(int(str(c).rstrip("b")), 6, 2), "stop").x
        for eta in (0.0, 1e-5, 1e-6)
    )
    assert 0 < (little - none).abs().max() < 0.01
    assert torch.allclose(little - none, 10 * (less - none), rtol=1e-3, atol=1e-8)


def test_reverse_diffusion_without_noise_is_the_papers_probability_flow():
    """x_i = (2 - sqrt(1 - beta)) x + beta score / 2 on DDPM's chain.  Song et al. 2021, eq. 46."""
    sde = build("vp", "ddpm")
    model, x, times = Exact(sde, mixture_2d()), normal(0, 6, 2), sde.times[[500, 499]]
    beta = 1 - (sde.alpha(times[0]) / sde.alpha(times[1])) ** 2
    score = model.score(x, times[0])
    for eta, z in ((0.0, 0.0), (1.0, 1.0)):
        expected = (2 - (1 - beta).sqrt()) * x + 0.5 * (1 + eta) * beta * score + eta * beta.sqrt() * z
        got = sample(model, ReverseDiffusion(eta), x, times, lambda c: torch.ones_like(x), "stop").x
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10)


class OneStep:
    """A quadrature of the noise of the last of `steps` steps, of two draws, and none before: rows are nodes."""

    def __init__(self, steps: int, nodes: int = 7):
        z, w = np.polynomial.hermite_e.hermegauss(nodes)
        self.z = torch.cartesian_prod(*[torch.from_numpy(z)] * 2)
        self.w = torch.cartesian_prod(*[torch.from_numpy(w / w.sum())] * 2).prod(1)
        self.last = {steps: self.z[:, :1], f"{steps}b": self.z[:, 1:]}

    def __call__(self, counter):
        return self.last.get(counter, torch.zeros_like(self.z[:, :1]))


def mixture_1d() -> GaussianMixture:
    return GaussianMixture(f64(0.6, 0.4), f64([0.8], [-1.0]), f64([[0.1]], [[0.3]]))


@pytest.mark.parametrize("name", [*SAMPLERS, "edm_churn"])
@every_path
def test_a_tiny_step_is_the_family_of_sdes(sde, name, eta=0.7):
    """Its moments over h tend to f x - (1 + eta^2)/2 g^2 score, eta^2 g^2 and 0: the fourth is 3 eta^4 g^4 h (Kramers-Moyal)."""
    model, h, steps, seen = Exact(sde, mixture_1d()), 1e-6, 4, []
    noise = OneStep(steps)
    for t in (0.2004, 0.6004):  # not at the levels of a table, where f and g jump
        times = f64(*[t - i * h for i in range(steps + 1)])
        width = (sde.lam(times[-1]) - sde.lam(times[0])).item()
        # that churn in a step is eta^2 h of lam
        sampler = EDMChurn(eta**2 * width, 0, 1e9) if name == "edm_churn" else SAMPLERS[name](eta)
        for start in (-0.7, 0.4):
            x = torch.full_like(noise.z[:, :1], start)
            sample(model, sampler, x, times, noise, "stop", lambda i, x: seen.append(x))
            before, dx = seen[-2][0], (seen[-1] - seen[-2])[:, 0]
            first, second, fourth = ((noise.w @ dx**k).item() for k in (1, 2, 4))
            drift = sde.f(t := times[-2]) * before - 0.5 * (1 + eta**2) * sde.g2(t) * model.score(before[None], t)[0]
            g2 = sde.g2(t).item()
            assert first / -h == pytest.approx(drift.item(), rel=1e-3, abs=1e-3)
            assert second / h == pytest.approx(eta**2 * g2, rel=1e-3, abs=1e-3)
            assert fourth / h**2 == pytest.approx(3 * eta**4 * g2**2, rel=1e-3, abs=1e-3)
            t = times[0].item()


def walks(a, b, sde, steps=7, model=None):
    """Both walks from the same start by the same noise."""
    model, x = model or Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 6, 2))
    return [
        sample(model, s, x, Karras()(sde, steps), lambda c: normal(int(str(c).rstrip("b")), 6, 2), "stop").x
        for s in (a, b)
    ]


IDENTITIES = {
    "ancestral is ddim": (Ancestral(), DDIM(1)),
    "ancestral is euler_ancestral": (Ancestral(), EulerAncestral(1)),
    "ddim is euler_ancestral": (DDIM(0.3), EulerAncestral(0.3)),
    "dpmpp_2m_sde of one reading is ancestral": (SASolver(1, 1, 0), Ancestral()),
    "dpmpp_2m_sde is sa_solver": (DPMpp2MSDE(0.7, "heun"), SASolver(0.7, 2, 0)),
    "dpmpp_3m_sde is sa_solver": (DPMpp3MSDE(0.7), SASolver(0.7, 3, 0)),
}


@pytest.mark.parametrize("pair", IDENTITIES.values(), ids=IDENTITIES)
@every_path
def test_identities(sde, pair):
    for steps in (1, 7):
        a, b = walks(*pair, sde, steps)
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


@pytest.mark.parametrize("other", [EulerMaruyama(), ReverseDiffusion()], ids=["euler_maruyama", "reverse_diffusion"])
@paths([*USUAL[:3], ("subvp", "linear")])
def test_ancestral_differs_by_the_square_of_a_step(sde, other):
    """In the mean and in the variance of one step.  Song et al. 2021, app. E."""
    model, x = Exact(sde, mixture_2d()), normal(0, 6, 2)

    def moments(sampler, h):
        quiet, loud = (
            sample(model, sampler, x, f64(0.5, 0.5 - h), lambda c, z=z: z * torch.ones_like(x), "stop").x
            for z in (0, 1)
        )
        return quiet, (loud - quiet) ** 2

    gaps = [
        [(a - b).norm().item() for a, b in zip(moments(Ancestral(), h), moments(other, h), strict=True)]
        for h in (2e-3, 1e-3)
    ]
    for coarse, fine in zip(*gaps, strict=True):
        assert coarse < 1e-12 or coarse / fine == pytest.approx(4, rel=0.05)  # on VE two means are equal


@each({"ancestral": Ancestral(), "edm_churn": EDMChurn(8)} | {n: s(0.8) for n, s in IN_LAM.items()})
def test_the_same_walk_on_every_path(sampler):
    """At equal lam, y = x/alpha of a walk on VP is that on VE, with the same noise: VE, EDM and VP are one."""
    vp, ve = build("vp", "linear"), VE(Geometric(1e-4, 1e4))
    model = Exact(vp, mixture_2d())
    rescaled = Rescaled(ve, model)  # with VP's levels
    times, y = UniformLam()(ve, 8), normal(0, 6, 2) * 100
    same = vp.time(ve.lam(times)).clamp(vp.t_min, vp.t_max)

    def walk(model, times):
        alpha = model.sde.alpha(times)
        x = sample(model, sampler, alpha[0] * y, times, lambda c: normal(int(str(c).rstrip("b")), 6, 2), "stop").x
        return x / alpha[-1]

    assert torch.allclose(walk(rescaled, times), walk(model, same), rtol=1e-6, atol=1e-7)
