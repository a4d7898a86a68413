"""The second reading of a model: its place between the small and the large variance, how it is learned and what reads it."""

import pytest
import torch
from cases import PREDICTIONS, Fixed, build, f64, mixture_2d, normal
from torch import nn

from diffcli.diffusion.chain import Chain
from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.loss import VLB, DDPMSimple, TrainingSet
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import Ancestral
from diffcli.diffusion.schedule import DDPM, NCSN
from diffcli.diffusion.sde import VE, VP
from diffcli.randomness import Draw

SDES = {"ddpm": VP(DDPM(T=30)), "ncsn": VE(NCSN(L=30)), "flow": build("flow", "logit")}
every_sde = pytest.mark.parametrize("sde", [pytest.param(sde, id=name) for name, sde in SDES.items()])
POINTS = TrainingSet(lambda: None, (2,))


class WithV(Exact):
    """The exact score of a mixture, and a v of its own: a function of (x, t)."""

    outputs = 2

    def __init__(self, sde, mixture, v):
        super().__init__(sde, mixture)
        self.v = v

    def _variance_parts(self, xt, t, **cond):
        return *self.parts(xt, t, **cond), self.v(xt, t)


class TwoLines(nn.Module):
    """eps = w x, v = sigmoid(a x + b): each output with weights of its own."""

    def __init__(self):
        super().__init__()
        self.w, self.a, self.b = (nn.Parameter(f64(x)[0]) for x in (0.5, 0.3, -0.2))

    def forward(self, x, c_noise):
        return torch.cat([self.w * x, self.a * x + self.b], dim=1)


def learned(sde, T=20, hybrid=0.001):
    loss = VLB(None if sde.times is not None else T, "learned", hybrid)
    loss.setup(WithV(sde, mixture_2d(), None), POINTS)
    return loss


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_other_reading_is_of_the_first_output(name):
    """moments gives x0_hat and eps as they are without the second output, and v = sigmoid of it, in one evaluation."""
    sde, xt, t = build("vp", "linear"), normal(0, 5, 3, 2, 2), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    first, second = normal(1, 5, 3, 2, 2), normal(2, 5, 3, 2, 2)
    one = PREDICTIONS[name](sde, Fixed(first))
    two = PREDICTIONS[name](sde, Fixed(torch.cat([first, second], dim=1)), outputs=2)
    assert (one.outputs, two.outputs) == (1, 2)
    for reading in ("forward", "eps", "score", "v", "velocity"):
        assert torch.equal(getattr(two, reading)(xt, t), getattr(one, reading)(xt, t))
    before = evaluations(two)
    x0, eps, v = two.moments(xt, t)
    assert evaluations(two) - before == 5
    assert torch.equal(x0, one(xt, t)) and torch.equal(eps, one.eps(xt, t))
    assert torch.equal(v, 1 / (1 + torch.exp(-second))) or torch.allclose(v, 1 / (1 + torch.exp(-second)))


def test_a_network_of_one_output_is_refused():
    model = Eps(build("vp", "linear"), Fixed(normal(0, 5, 2)), outputs=2)
    with pytest.raises(ValueError, match="prediction.outputs=2 needs a network with as many"):
        model.moments(normal(0, 5, 2), f64(0.5)[0])
    with pytest.raises(ValueError, match="outputs must be 1, or 2"):
        Eps(build("vp", "linear"), Fixed(normal(0, 5, 2)), outputs=3)


@pytest.mark.parametrize("v, fixed", [(0.0, "small"), (1.0, "large")])
@every_sde
def test_the_ends_of_v_are_the_fixed_variances(sde, v, fixed):
    model, x0 = WithV(sde, mixture_2d(), lambda xt, t: torch.full_like(xt, v)), normal(0, 6, 2)
    plain = VLB(learned(sde).T, fixed)
    plain.setup(model, POINTS)
    found, expected = learned(sde).terms(model, x0, Draw(0, 0)), plain.terms(model, x0, Draw(0, 0))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    half = WithV(sde, mixture_2d(), lambda xt, t: torch.full_like(xt, 0.5))
    assert not torch.allclose(learned(sde).terms(half, x0, Draw(0, 0)), expected, rtol=1e-3)


@every_sde
def test_the_hybrid_loss_is_the_simple_one_and_a_little_of_the_bound(sde):
    model, x0 = WithV(sde, mixture_2d(), lambda xt, t: torch.sigmoid(xt)), normal(0, 40, 2)
    simple = DDPMSimple(learned(sde).T)(model, x0, Draw(0, 0))
    once, twice = (learned(sde, hybrid=h)(model, x0, Draw(0, 0)) for h in (0.25, 0.5))
    assert torch.allclose(once - simple, twice - once, rtol=1e-9, atol=1e-9)
    # T copies of an item, each at another level
    T = len(Chain.of(sde, learned(sde).T).t)

    class Ones:
        def uniform(self, purpose, shape, dtype):
            return torch.full(shape, 0.013, dtype=dtype)

        def stratified(self, purpose, n):
            return 0.013 + torch.arange(n, dtype=torch.float64) / n

        def normal(self, purpose, shape, dtype):
            return torch.ones(shape, dtype=dtype)

    items = x0[:1].expand(T, 2)
    part = learned(sde, hybrid=0.25)(model, items, Ones()) - DDPMSimple(learned(sde).T)(model, items, Ones())
    assert torch.allclose(part.mean() / 0.25, learned(sde).terms(model, x0[:1], Ones()).sum(), rtol=1e-9)


def test_the_bound_leaves_the_mean_alone():
    """The gradient of the mean's weights is that of the simple loss; v has the bound's, times hybrid."""
    sde, x0 = SDES["ddpm"], normal(0, 200, 2)
    model = Eps(sde, TwoLines(), outputs=2)
    net = model.network

    def grads(loss, *weights):
        return torch.autograd.grad(loss.mean(), weights, allow_unused=True)

    (simple, *unused) = grads(DDPMSimple()(model, x0, Draw(0, 0)), net.w, net.a, net.b)
    assert unused == [None, None] or all(g == 0 for g in unused)
    w, a, b = grads(learned(sde, hybrid=0.5)(model, x0, Draw(0, 0)), net.w, net.a, net.b)
    assert torch.allclose(w, simple, rtol=1e-12)
    assert abs(a) > 1e-3 and abs(b) > 1e-3
    _, *twice = grads(learned(sde, hybrid=1.0)(model, x0, Draw(0, 0)), net.w, net.a, net.b)
    assert torch.allclose(torch.stack(twice), 2 * torch.stack([a, b]), rtol=1e-9)


@pytest.mark.parametrize("c", [0.3, 0.8])
def test_training_finds_the_variance_of_the_reverse_step(c):
    """For data N(0, c^2) the reverse step has the variance sigma_{s|t}^2 + (alpha_s (1 - e^{-2h}))^2 Var(x0 | x_t)."""
    T = 6
    sde = VP(DDPM(betas=[0.02, 0.05, 0.1, 0.2, 0.35, 0.5]))
    gaussian = GaussianMixture(f64(1.0), f64([0.0]), f64([[c**2]]))
    logits = torch.zeros(T, dtype=torch.float64, requires_grad=True)
    model = WithV(sde, gaussian, lambda xt, t: torch.sigmoid(logits[(t * T).round().long() - 1])[:, None].expand_as(xt))
    loss = learned(sde, hybrid=1.0)
    items = c * f64(-1.0, 1.0, -1.0, 1.0).repeat(T)[:, None]  # with the data's second moment

    class Both:
        """Four items a level, both signs of x0 with both signs of the noise: the mean of the loss is then exact."""

        def uniform(self, purpose, shape, dtype):
            return torch.zeros(shape, dtype=dtype)

        def stratified(self, purpose, n):
            return torch.arange(n, dtype=torch.float64) / n

        def normal(self, purpose, shape, dtype):
            return f64(-1.0, -1.0, 1.0, 1.0).repeat(T)[:, None]

    for _ in range(60):  # Newton's steps, the levels being apart from each other
        (slope,) = torch.autograd.grad(loss(model, items, Both()).mean(), logits, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), logits)
        with torch.no_grad():
            logits -= (slope / bend.abs()).clamp(-0.5, 0.5)
    chain = Chain.of(sde)
    found = (chain.log_small + chain.gap * torch.sigmoid(logits.detach())).exp()
    alpha, sigma = sde.alpha(chain.t), sde.sigma(chain.t)
    alpha_s, sigma_s = torch.cat([f64(1.0), alpha[:-1]]), torch.cat([f64(0.0), sigma[:-1]])
    # the joint Gaussian of x_s and x_t
    var_s, var_t = alpha_s**2 * c**2 + sigma_s**2, alpha**2 * c**2 + sigma**2
    true = var_s - (alpha / alpha_s * var_s) ** 2 / var_t
    inside = true > chain.log_small.exp()  # at i = 1 the range may not reach down to it
    assert inside[1:].all()
    assert torch.allclose(found[inside], true[inside], rtol=1e-4)
    assert (found[1:] / chain.log_small[1:].exp() > 1.01).all()


@every_sde
def test_ancestral_sampling_with_each_variance(sde):
    """std^2 = sigma_s^2 (1 - e^{-2h}), sigma_{t|s}^2, and the learned one, which is either at v = 0 and 1."""
    x, z, times = normal(0, 6, 2), normal(1, 6, 2), f64(0.9, 0.6, 0.3, 0.1)
    for i in range(2):
        t, s = times[i], times[i + 1]
        std_t = sde.transition(s, t)[1]
        std = {"small": std_t * sde.sigma(s) / sde.sigma(t), "large": std_t}

        def noise_of(variance, v=None, i=i):
            model = Exact(sde, mixture_2d()) if v is None else WithV(sde, mixture_2d(), lambda xt, t: v)
            sampler = Ancestral(variance)
            plan = sampler.plan(sde, times)
            loud, quiet = (sampler.step(model, x, i, plan, [], lambda c, k=k: k * z) for k in (1, 0))
            assert evaluations(model) == 12
            return loud - quiet

        for name, v in (("small", 0.0), ("large", 1.0)):
            assert torch.allclose(noise_of(name), std[name] * z, rtol=1e-6, atol=1e-9)
            assert torch.allclose(noise_of("learned", torch.full_like(x, v)), std[name] * z, rtol=1e-6, atol=1e-9)
        v = torch.sigmoid(x)
        assert torch.allclose(noise_of("learned", v), std["large"] ** v * std["small"] ** (1 - v) * z, rtol=1e-6)


def test_the_large_variance_is_ddpms_beta():
    sde = VP(DDPM(T=30))
    plan = Ancestral("large").plan(sde, sde.times.flip(0))
    betas = torch.linspace(0.1 / 30, 20 / 30, 30, dtype=torch.float64)
    assert torch.allclose(f64(*plan.c) ** 2, betas.flip(0)[:-1], rtol=1e-9)


@pytest.mark.parametrize("steps", [3, 9])
def test_the_right_variance_keeps_the_law_with_any_number_of_steps(steps):
    """N(0, I) under VP stays N(0, I) with the large variance, and shrinks with the small one."""
    sde, unit = build("vp", "linear"), GaussianMixture(f64(1.0), f64([0.0]), f64([[1.0]]))
    times, one = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    after = {}
    for variance in ("small", "large"):
        sampler, var = Ancestral(variance), 1.0
        plan = sampler.plan(sde, times)
        for i in range(steps - 1):  # the last one has no noise
            slope = sampler.step(Exact(sde, unit), one, i, plan, [], lambda c: 0 * one)
            noise = sampler.step(Exact(sde, unit), 0 * one, i, plan, [], lambda c: one)
            var = (slope**2 * var + noise**2).item()
        after[variance] = var
    assert after["large"] == pytest.approx(1, rel=1e-9)
    assert after["small"] < 0.97


def test_a_model_without_it_is_refused():
    vp = build("vp", "linear")
    model = Exact(vp, mixture_2d())
    for sampler in (Ancestral("small"), Ancestral("large")):
        sampler.setup(model)
    two = WithV(vp, mixture_2d(), None)
    Ancestral("learned").setup(two)
    for other in (model, Rescaled(build("ve", "geometric"), two)):
        with pytest.raises(ValueError, match="prediction.outputs=2"):
            Ancestral("learned").setup(other)
    with pytest.raises(ValueError, match="small, large, learned"):
        Ancestral("middle")
    with pytest.raises(NotImplementedError):
        model.moments(normal(0, 5, 2), f64(0.5)[0])
