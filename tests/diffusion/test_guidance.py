"""Guidance by labels: with the exact pieces of a mixture every guided score is known at every (x, t).

The laws here are of scores.  Samples of a guided score do NOT follow `p(x|y) p(y|x)^gamma`: that law, noised to t, is not
`p_t(x|y) p_t(y|x)^gamma`, so the guided scores are those of no one process; the last test shows by how much.
"""

import pytest
import torch
from cases import (
    PREDICTIONS,
    build,
    every_path,
    f64,
    mixture_2d,
    mixture_of,
    no_noise,
    noised,
    normal,
    times_of,
    usual_paths,
)
from sampler_cases import SAMPLERS
from torch import nn

from diffcli.diffusion.classifier import Classifier
from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.guidance import (
    Autoguided,
    ClassifierFree,
    ClassifierGuided,
    Conditioned,
    ExactClassifier,
    Rescaled,
)
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import DDIM, Ancestral, sample
from diffcli.diffusion.schedule import Geometric, Linear
from diffcli.diffusion.sde import VE, VP
from diffcli.diffusion.sde.one import OneLevel
from diffcli.randomness import ItemNoise
from diffcli.sampling import Conditions, draw_samples

GAMMAS = (-1.0, 0.7, 10.0)
NAMES = ["a", "b", "c"]
READINGS = ("forward", "eps", "v", "velocity", "velocity_lam")
LABELS = torch.tensor([0, 1, 2, -1])


def pieces(sde, n=12, t=None):
    """The exact model, its classifier, x and a t each, and labels, among them none."""
    mixture = mixture_2d()
    if t is None:
        t = times_of(sde, n, start=max(sde.t_min, 0.01))[:n]
    x = torch.cat([noised(sde, mixture, 1, s.item(), seed=i) for i, s in enumerate(t)])
    return Exact(sde, mixture), ExactClassifier(sde, mixture, NAMES), x, t, LABELS.repeat(n)[: len(t)]


def closed_form(sde, x, t, label, gamma):
    """`grad [(1 + gamma) log p_t(x|y) - gamma log p_t(x)]`, from the densities themselves, in which no score is used."""
    mixture, alpha, sigma = mixture_2d(), sde.alpha(t), sde.sigma(t)
    x = x.clone().requires_grad_()
    log_p = mixture.log_prob(x, alpha, sigma)
    log_py = mixture.log_prob(x, alpha, sigma, label)
    return torch.autograd.grad(((1 + gamma) * log_py - gamma * log_p).sum(), x)[0]


def close(a, b, tol=1e-9):
    return torch.allclose(a, b, rtol=tol, atol=tol * b.abs().max().item())


@every_path
def test_with_exact_pieces_every_guidance_is_the_known_score(sde):
    """cfg(gamma) = classifier(gamma) on the conditional = classifier(1 + gamma) on the unconditional model."""
    for gamma in GAMMAS:
        check_known_score(sde, gamma)


@every_path
@pytest.mark.heavy
def test_more_gammas(sde):
    for gamma in (-10.0, -0.4, 0.0, 0.1, 2.0, 50.0):
        check_known_score(sde, gamma)


def check_known_score(sde, gamma):
    exact, classifier, x, t, label = pieces(sde)
    truth = closed_form(sde, x, t, label, gamma)
    found = {
        "cfg": ClassifierFree(exact, gamma),
        "conditional": ClassifierGuided(exact, classifier, gamma),
        "unconditional": ClassifierGuided(exact, classifier, 1 + gamma, model="unconditional"),
    }
    eps = -sde.sigma(t)[:, None] * truth
    for name, guided in found.items():
        assert close(guided.score(x, t, label=label), truth), name
        for reading in READINGS:
            assert close(getattr(guided, reading)(x, t, label=label), of_eps(sde, x, t, eps, reading), 1e-8), (
                name,
                reading,
            )


def of_eps(sde, x, t, eps, reading):
    """A reading from eps, by definition."""
    alpha, sigma = (c[:, None] for c in (sde.alpha(t), sde.sigma(t)))
    x0 = (x - sigma * eps) / alpha
    velocity = sde.f(t)[:, None] * x + 0.5 * (sde.g2(t) / sde.sigma(t))[:, None] * eps
    found = {"forward": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": velocity}
    return (found | {"velocity_lam": velocity / sde.dlam(t)[:, None]})[reading]


class Known(Exact):
    """The guided score in closed form, as a denoiser that knows no guidance."""

    def __init__(self, sde, gamma, label):
        super().__init__(sde, mixture_2d())
        self.gamma, self.given = gamma, label

    def parts(self, xt, t, label=None):
        c_skip, c_out, plain = super().parts(xt, t)
        return c_skip, c_out, plain + (1 + self.gamma) * (super().parts(xt, t, label=self.given)[2] - plain)

    def score(self, xt, t, **cond):
        return self.parts(xt, t)[2]


def walk(denoiser, sampler, n=8, steps=3, t_min=0.1, dtype=torch.float64, seed=0):
    """x and NFE from the seed's starts."""
    noise = ItemNoise(seed, range(n), (2,), dtype)
    with torch.no_grad():
        x = sampler.begin(denoiser.sde, noise)
        return sample(denoiser, sampler, x, UniformLam(t_min)(denoiser.sde, steps), noise)


def guided(kind, exact, gamma, **more):
    if kind == "cfg":
        return ClassifierFree(exact, gamma, **more)
    classifier = ExactClassifier(exact.sde, exact.mixture, NAMES)
    return ClassifierGuided(exact, classifier, gamma, **more)


FEW = ("ddim", "heun-t", "ancestral", "rk45", "pc", "langevin", "dpm_taylor")


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "cfg") for name in SAMPLERS] + [(name, "classifier") for name in FEW]
)
def test_every_sampler_walks_on_the_guided_score_and_counts_what_it_costs(name, kind):
    sde, label, sampler = VP(Linear()), torch.arange(4) % 3, SAMPLERS[name]
    exact = Exact(sde, mixture_2d())
    model = Conditioned(guided(kind, exact, 0.7), label=label)
    try:
        sampler.setup(model)
    except ValueError:  # it differentiates the model forward
        assert (name, kind) == ("dpm_taylor", "classifier")
        return
    found, known = walk(model, sampler, 4), walk(Known(sde, 0.7, label), sampler, 4)
    assert close(found.x, known.x, 1e-6)
    assert torch.equal(found.nfe, known.nfe * (2 if kind == "cfg" else 1))


@pytest.mark.parametrize("kind", ["cfg", "classifier"])
@pytest.mark.parametrize("name", ["ddim", "heun-t", "dpmpp_2m", "ancestral", "rk45", "pc", "langevin"])
def test_gamma_0_samples_as_the_plain_conditional_model(name, kind):
    """Bit for bit, at its cost."""
    exact, label = Exact(VP(Linear()), mixture_2d()), torch.arange(8) % 3
    plain = walk(Conditioned(exact, label=label), SAMPLERS[name])
    none = walk(Conditioned(guided(kind, exact, 0.0), label=label), SAMPLERS[name])
    assert torch.equal(plain.x, none.x)
    assert torch.equal(plain.nfe, none.nfe)


class Network(nn.Module):
    """A small network of a label or a vector, whose calls are kept; it must not be differentiated."""

    def __init__(self, outputs=1, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(5, 2 * outputs, generator=g, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(4, 2, generator=g, dtype=torch.float64))
        self.calls = []

    def forward(self, x, c_noise, label=None, vector=None):
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        y = self.table.new_zeros(len(x), 2)
        if label is not None:
            y = self.table[label]
        elif vector is not None:
            y = torch.where(vector.isnan(), self.table[3], vector)
        self.calls.append({"x": x, "c_noise": c_noise, "label": label, "vector": vector})
        return torch.tanh(torch.cat([x, y, torch.sin(c_noise)[:, None]], 1).to(self.w.dtype) @ self.w)


def test_both_calls_are_one_batch_and_outside_of_the_interval_one_of_one():
    network, label = Network(), torch.tensor([0, 1, 2, 0])
    model = ClassifierFree(Eps(VP(Linear()), network), 2.0, interval=[0.3, 0.6])
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    noise = ItemNoise(0, range(4), (2,), torch.float64)
    with torch.no_grad():
        x, nfe = sample(Conditioned(model, label=label), DDIM(), noise(0), times, noise)
    asked = [8 if 0.3 <= t <= 0.6 else 4 for t in times[:-1].tolist()]
    assert [len(call["x"]) for call in network.calls] == asked
    assert nfe.tolist() == [sum(asked) // 4] * 4
    for call in network.calls:
        assert torch.equal(call["label"][:4], label)
        assert (call["label"][4:] == -1).all()
    with torch.no_grad():  # each item its own t: some inside, and the cost the same for all
        network.calls.clear()
        model(x, torch.tensor([0.2, 0.4, 0.7, 0.5], dtype=torch.float64), label=label)
        model(x, torch.full((4,), 0.1, dtype=torch.float64), label=label)
    assert [len(call["x"]) for call in network.calls] == [8, 8]


@torch.no_grad()
@pytest.mark.parametrize("rescale", [0.0, 0.6])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_t_an_item_is_the_same_as_one_t(prediction, rescale):
    sde, x, label = build("vp", "linear"), normal(0, 5, 2), torch.tensor([0, 1, 2, -1, 0])
    model = ClassifierFree(PREDICTIONS[prediction](sde, Network()), 1.5, interval=[0.25, 0.75], rescale=rescale)
    for t in (0.1, 0.5, 0.75, 0.9):
        for reading in ("forward", "eps", "score", "velocity"):
            one = getattr(model, reading)(x, f64(t)[0], label=label)
            each = getattr(model, reading)(x, torch.full((5,), t, dtype=torch.float64), label=label)
            assert close(each, one, 1e-10), (t, reading)


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_whatever_the_network_predicts_the_formula_is_of_x0_hat(prediction):
    """Also for vectors, whose none is a row of NaN, and for the variance, which is the conditional's."""
    sde, x, t = build("vp", "linear"), normal(0, 5, 2), torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    plain = PREDICTIONS[prediction](sde, Network(2), outputs=2)
    for given, none in (
        ({"label": torch.tensor([0, 1, 2, 1, 0])}, {"label": torch.full((5,), -1)}),
        ({"vector": normal(1, 5, 2)}, {"vector": torch.full((5, 2), torch.nan)}),
    ):
        model = ClassifierFree(plain, 1.5)
        for reading in ("forward", "eps", "score", "velocity", "v"):
            with_, without = (getattr(plain, reading)(x, t, **c) for c in (given, none))
            assert close(getattr(model, reading)(x, t, **given), with_ + 1.5 * (with_ - without), 1e-10)
        assert model.outputs == 2
        x0, eps, v = model.moments(x, t, **given)
        assert close(x0, model(x, t, **given), 1e-10)
        assert close(eps, model.eps(x, t, **given), 1e-10)
        assert torch.equal(v, plain.moments(x, t, **given)[2])
    first, label = Eps(sde, Network(2), outputs=2), torch.tensor([0, 1, 2, 1, 0])
    other = PREDICTIONS[prediction](sde, Network(2, seed=1), outputs=2)
    away = Autoguided(first, other, 1.5)
    x0, x0_other = (a(x, t, label=label) for a in (first, other))
    assert close(away(x, t, label=label), x0 + 1.5 * (x0 - x0_other), 1e-10)
    assert close(away.moments(x, t, label=label)[0], away(x, t, label=label), 1e-10)
    assert close(away.moments(x, t, label=label)[1], away.eps(x, t, label=label), 1e-9)
    rescaled = ClassifierFree(plain, 1.5, rescale=0.5)
    x0, eps, _ = rescaled.moments(x, t, **given)
    assert close(x0, rescaled(x, t, **given), 1e-10)
    assert close(eps, rescaled.eps(x, t, **given), 1e-9)


@torch.no_grad()
def test_a_learned_variance_stays_under_classifier_guidance():
    sde, x, t = build("vp", "linear"), normal(0, 5, 2), torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    plain, label = Eps(sde, Network(2), outputs=2), torch.tensor([0, 1, 2, 1, -1])
    model = ClassifierGuided(plain, ExactClassifier(sde, mixture_2d(), NAMES), 1.5)
    x0, eps, v = model.moments(x, t, label=label)
    assert close(x0, model(x, t, label=label), 1e-10)
    assert close(eps, model.eps(x, t, label=label), 1e-10)
    assert not close(eps, plain.eps(x, t, label=label), 1e-3)
    assert torch.equal(v, plain.moments(x, t, label=label)[2])


@torch.no_grad()
def test_rescale_gives_each_item_the_deviation_of_its_plain_estimate():
    exact, x, label = Exact(VP(Linear()), mixture_of(6)), 2 * normal(0, 7, 6), torch.arange(7) % 3
    plain, far = exact(x, f64(0.4)[0], label=label), ClassifierFree(exact, 9.0)(x, f64(0.4)[0], label=label)
    assert (far.std(1) > 1.1 * plain.std(1)).any()
    for phi in (0.3, 1.0):
        found = ClassifierFree(exact, 9.0, rescale=phi)(x, f64(0.4)[0], label=label)
        factor = phi * plain.std(1) / far.std(1) + 1 - phi
        assert close(found, factor[:, None] * far, 1e-10)
    assert close(found.std(1), plain.std(1), 1e-10)


def test_samples_do_not_depend_on_the_batch():
    """Of a network in float32, bit for bit: batches are multiples of 16, and so are the doubled ones."""
    model = ClassifierFree(Eps(VP(Linear()), Network().float()), 1.5, rescale=0.5)
    times, given = UniformLam()(model.sde, 4), Conditions(label=torch.tensor([0, 2, 1]))
    found = []
    for size in (16, 48):
        with torch.no_grad():
            drawn = draw_samples(model, Ancestral(), times, (2,), 40, 0, size, given=given)
            found.append(torch.cat([x for x, _ in drawn]))
    assert torch.equal(*found)


@pytest.mark.parametrize("other", [VE(Geometric(0.001, 200)), build("flow", "logit"), build("subvp", "geometric")])
def test_a_classifier_on_another_sde_is_the_same_classifier(other):
    sde = VP(Linear())
    exact, own, x, t, label = pieces(sde)
    t = t.clamp(max=0.8)  # as noisy as the other ones are
    there = ExactClassifier(other, mixture_2d(), NAMES)
    for kind in ("conditional", "unconditional"):
        found, known = (ClassifierGuided(exact, c, 2.0, model=kind).score(x, t, label=label) for c in (there, own))
        assert close(found, known, 1e-8)


def test_beyond_the_levels_of_what_guides():
    """Cleaner ones are asked at its cleanest, noisier ones are not guided, and cost nothing more."""
    sde, short = VP(Linear()), VE(Geometric(0.1, 2.0))
    exact, label = Exact(sde, mixture_2d()), torch.tensor([0, 1, 2, 0])
    x, worse = normal(0, 4, 2), Exact(short, mixture_of(2))
    for model in (
        ClassifierGuided(exact, ExactClassifier(short, mixture_2d(), NAMES), 2.0),
        Autoguided(exact, worse, 2.0),
    ):
        t_reach = sde.time(short.lam(f64(1.0))).item()
        for t, guided in ((t_reach + 1e-3, False), (t_reach - 1e-3, True), (1e-3, True)):
            before = worse.rows
            apart = (model.eps(x, f64(t)[0], label=label) - exact.eps(x, f64(t)[0], label=label)).abs().max()
            assert (apart > 1e-4) == guided, t
            assert worse.rows - before == (4 if guided and isinstance(model, Autoguided) else 0)
    # at t = 0.001 sigma/alpha is 0.01, the classifier's least is 0.1
    alpha, u = sde.alpha(f64(1e-3)[0]), f64(0.0)[0]
    at = (x / alpha).requires_grad_()
    log_c = ExactClassifier(short, mixture_2d(), NAMES).log_prob(at, u)
    (known,) = torch.autograd.grad(log_c.gather(1, label[:, None]).sum(), at)
    model = ClassifierGuided(exact, ExactClassifier(short, mixture_2d(), NAMES), 2.0)
    assert close(model.gradient(x, f64(1e-3)[0], label), known / alpha)


def test_classifier_guidance_differentiates_the_classifier_alone():
    """A trained one, in float32, by differences; the score network raises where it would be differentiated."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(normal(3, 2, 3).float())

        def forward(self, x, c_noise):
            features = torch.tanh(x @ self.w) + c_noise[:, None] / 1000
            return features, features**2

    sde, classifier = VP(Linear()), Classifier(Body(), [2], ["c", "a", "b"], VE(Geometric(0.01, 200)))
    network, x, label = Network(), normal(0, 4, 2), torch.tensor([0, 1, 2, -1])
    inner = Eps(sde, network)
    model = Conditioned(ClassifierGuided(inner, classifier, 2.0, names=NAMES), label=label)
    t = torch.tensor([0.2, 0.3, 0.5, 0.6], dtype=torch.float64)
    with torch.no_grad():
        gradient = model.score(x, t) - inner.score(x, t, label=label)
        assert not x.requires_grad
        assert all("label" in call for call in network.calls)
        u = classifier.sde.time(sde.lam(t))
        columns, h = torch.tensor([1, 2, 0, 0]), 1e-3
        for k in range(2):
            ends = []
            for step in (h, -h):
                y = (x + step * torch.eye(2)[k]) / sde.alpha(t)[:, None]
                ends.append(classifier.double().log_prob(y, u).gather(1, columns[:, None])[:, 0])
            slope = 2.0 * (ends[0] - ends[1]) / (2 * h)
            assert torch.allclose(gradient[:3, k], slope[:3], rtol=1e-3, atol=1e-4)
        assert (gradient[3].abs() < 1e-12).all()  # a label of none is not guided
    assert all(p.grad is None for p in model.parameters())


def test_autoguidance_is_the_formula_whatever_the_two_sdes_and_predictions():
    """s + gamma (s - s_other), s_other the score that the other mixture has on the first SDE."""
    sde, x = VP(Linear()), normal(0, 6, 2)
    better, worse = mixture_2d(), mixture_of(2)
    t, label = torch.linspace(0.05, 0.75, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, -1, 1])
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for other in (sde, VE(Geometric(0.001, 200)), build("flow", "logit")):
        inner, second = Exact(sde, better), Exact(other, worse)
        model = Autoguided(inner, second, 1.5)
        s = better.score(x, alpha, sigma, label)
        assert close(model.score(x, t, label=label), s + 1.5 * (s - worse.score(x, alpha, sigma, label)), 1e-8)
        eps = -sigma[:, None] * (s + 1.5 * (s - worse.score(x, alpha, sigma, label)))
        assert close(model.eps(x, t, label=label), eps, 1e-7)
        assert evaluations(model) == 2 * 2 * 6
        untold = Autoguided(inner, second, 1.5, told=False)
        assert close(untold.score(x, t, label=label), s + 1.5 * (s - worse.score(x, alpha, sigma)), 1e-8)
        ends = inner.sde.t_min, inner.sde.t_max, other.t_min, other.t_max
        assert ends == (VP(Linear()).t_min, VP(Linear()).t_max, other.t_min, other.t_max)


@usual_paths
def test_a_model_under_another_sde_is_guided_there(sde):
    inner = Rescaled(build("ve", "edm"), Exact(sde, mixture_2d()))
    truth = ClassifierFree(Exact(inner.sde, mixture_2d()), 2.0)
    t = times_of(inner.sde, 8, start=max(0.1, inner.sde.t_min))
    x, label = inner.sde.sigma(t)[:, None] * normal(0, len(t), 2), torch.arange(len(t)) % 3
    assert close(ClassifierFree(inner, 2.0).eps(x, t, label=label), truth.eps(x, t, label=label), 1e-7)


def test_what_is_seen_is_the_guided_estimate():
    sde, label, seen = VP(Linear()), torch.tensor([0, 1, 2, 0]), []
    model = ClassifierFree(Exact(sde, mixture_2d()), 2.0)
    x, times = normal(0, 4, 2), UniformLam(0.1)(sde, 2)
    bound = Conditioned(model, label=label)
    sample(bound, DDIM(), x, times, no_noise, see=lambda x0, t: seen.append((x0, t)))
    assert [t.item() for _, t in seen] == times[:2].tolist()
    assert torch.equal(seen[0][0], model(x, times[0], label=label))


def test_a_level_without_noise_is_guided_in_its_score():
    """x0_hat is x there, whatever the guidance."""
    sde, x, t, label = OneLevel(1.0, 0.0), normal(0, 4, 2), f64(0.0)[0], LABELS
    exact, classifier = Exact(sde, mixture_2d()), ExactClassifier(sde, mixture_2d(), NAMES)
    truth = closed_form(sde, x, t, label, 2.0)
    for model in (ClassifierFree(exact, 2.0), ClassifierGuided(exact, classifier, 2.0)):
        assert close(model.score(x, t, label=label), truth)
        assert torch.equal(model(x, t, label=label), x)


def tilted(gamma: float) -> tuple[float, float]:
    """Mean and variance of `p(x|y) p(y|x)^gamma` for `line`, by a sum over a fine grid."""
    x = torch.linspace(-15, 15, 300001, dtype=torch.float64)
    log_p = line().components(x[:, None])[0]
    log_q = log_p[:, 1] + gamma * torch.log_softmax(log_p, 1)[:, 1]
    w = torch.softmax(log_q, 0)
    mean = (w * x).sum()
    return mean.item(), (w * (x - mean) ** 2).sum().item()


def line() -> GaussianMixture:
    return GaussianMixture(f64(0.5, 0.5), f64([-1.0], [1.0]), f64([[1.0]], [[1.0]]))


def test_samples_do_not_follow_the_tilted_law():
    """gamma = 0 gives p(x|y).  gamma = 3 does not give `p(x|y) p(y|x)^3`, which has mean 1.54 and variance 0.59: samples of the
    exact guided score, walked in fine steps, have 2.32 and 0.35."""
    sde, n, label = VP(Linear()), 4000, torch.ones(4000, dtype=torch.int64)
    start = normal(0, n, 1)
    for gamma in (0.0, 3.0):
        model = Conditioned(ClassifierFree(Exact(sde, line()), gamma), label=label)
        x = sample(model, SAMPLERS["dpm2"], start, UniformLam(1e-3)(sde, 40), no_noise).x[:, 0]
        mean, variance = tilted(gamma)
        error, spread = (variance / n) ** 0.5, variance * (2 / n) ** 0.5
        if gamma == 0:
            assert abs(x.mean() - mean) < 4 * error
            assert abs(x.var() - variance) < 4 * spread
        else:
            assert x.mean() - mean > 20 * error
            assert variance - x.var() > 10 * spread


def test_refusals():
    sde = VP(Linear())
    exact, posterior = Exact(sde, mixture_2d()), ExactClassifier(sde, mixture_2d(), NAMES)
    clean = Classifier(nn.Linear(2, 3), [2], NAMES)
    free = PREDICTIONS["velocity"](sde, Network(), free=True)
    for make, what in (
        (lambda: ClassifierFree(exact, float("nan")), "finite"),
        (lambda: ClassifierFree(exact, 1.0, interval=[0.5, 0.5]), "low < high"),
        (lambda: ClassifierFree(exact, 1.0, interval=[0.0, 0.5, 1.0]), "interval"),
        (lambda: ClassifierFree(exact, 1.0, rescale=1.5), "rescale"),
        (lambda: ClassifierFree(free, 1.0, rescale=0.5), "free field"),
        (lambda: ClassifierFree(exact, 1.0)(normal(0, 3, 2), f64(0.5)[0]), "needs a condition"),
        (lambda: ClassifierGuided(exact, clean), "clean items"),
        (lambda: ClassifierGuided(free, posterior), "free field"),
        (lambda: ClassifierGuided(exact, posterior, names=["a", "b", "d"]), "tells apart a, b, c"),
        (lambda: ClassifierGuided(exact, posterior, model="both"), "unconditional"),
        (lambda: Autoguided(exact, free), "free field"),
        (lambda: Autoguided(Exact(OneLevel(1.0, 0.0), mixture_2d()), exact), "without noise"),
        (lambda: Autoguided(exact, Exact(VE(Geometric(1e-5, 1e-4)), mixture_2d()), interval=[0.5, 1.0]), "less noise"),
    ):
        with pytest.raises(ValueError, match=what):
            make()
