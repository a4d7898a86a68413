"""The self check passes where all is well, and finds each part that is broken."""

import math

import pytest
import torch

from diffcli.diagnosis import laws_samplers
from diffcli.diagnosis.law import Worst, apart
from diffcli.diagnosis.self_check import CLAIMS, check, run
from diffcli.diffusion.bound import ContinuousBound
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.likelihood import ExactDivergence, Hutchinson
from diffcli.diffusion.prediction import EDM, V, Velocity
from diffcli.diffusion.prior import MatchedPrior
from diffcli.diffusion.samplers import DDIM, Ancestral, EulerMaruyama, FixedGrid, Heun
from diffcli.diffusion.schedule import Cosine
from diffcli.diffusion.sde import SDE, Scheduled, SubVP
from diffcli.metrics.features.statistics import Moments
from diffcli.networks.unet import Attention
from diffcli.randomness import ItemNoise

BY_NAME = {claim.name: claim for claim in CLAIMS}
SLOW = {"orders of convergence", "likelihood by the probability-flow ODE", "probability-flow map of a Gaussian"}
CPU = torch.device("cpu")


def failed(laws):
    return [(law.name, law.value, law.bound, law.where) for law in laws if not law.passed]


@pytest.mark.heavy
def test_every_law_holds_here():
    """All but those that take longest; progress wraps them all."""
    seen = []

    def progress(claims):
        for claim in claims:
            yield claim
            seen.append(claim.name)

    wanted = [c for c in CLAIMS if c.name not in SLOW]
    laws = run(progress=progress, claims=wanted)
    assert failed(laws) == []
    assert [law.name for law in laws] == seen == [c.name for c in wanted]
    assert all(law.formula and law.source and law.seconds >= 0 and law.value <= law.bound for law in laws)


@pytest.mark.heavy
def test_the_laws_that_take_longest_hold_here():
    assert failed(run(claims=[BY_NAME[name] for name in SLOW])) == []


def test_two_runs_agree():
    wanted = [BY_NAME[n] for n in ("noise belongs to its item", "networks", "exact score")]
    first, again = ([(law.value, law.where) for law in run(claims=wanted)] for _ in range(2))
    assert first == again


def test_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(
        claims=[BY_NAME[n] for n in ("energy", "networks", "samples belong to their item", "noise belongs to its item")]
    )
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_be_measured_has_failed():
    def broken(device):
        raise RuntimeError("no kernel image\nis available")

    law = check(CLAIMS[0]._replace(measure=broken), CPU)
    assert not law.passed and law.value == math.inf and law.where == "RuntimeError: no kernel image"


def test_the_worst_of_what_is_seen():
    worst = Worst()
    for value, where in ((0.1, "a"), (torch.tensor([0.2, 0.3]), "b"), (0.25, "c")):
        worst.see(value, where)
    assert (worst.value, worst.where) == (pytest.approx(0.3), "b")
    worst.see(torch.tensor([0.0, math.nan]), "d")
    worst.see(1e300, "e")
    assert (worst.value, worst.where) == (math.inf, "d")
    assert apart(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5
    assert apart(torch.tensor([0.5]), torch.zeros(1)) == 0.5


def scaled(name, by=1.001):
    """A method whose result is off by a factor."""

    def wrap(old):
        return lambda *args, **more: by * old(*args, **more)

    return name, wrap


def negated(name):
    return scaled(name, -1.0)


def rough(name):
    """A layer whose products keep too few bits where they are float32."""

    def wrap(old):
        return lambda self, x: old(self, x) * (1 if x.dtype == torch.float64 else 1.03)

    return name, wrap


def shared(name):
    """Noise that is that of the first item for all."""

    def wrap(old):
        def same(self, *args):
            found = old(self, *args)
            return found[:1].expand_as(found).copy()

        return same

    return name, wrap


def by_place(name):
    """Noise that depends on the place in the batch."""

    def wrap(old):
        def rolled(self, *args):
            found = old(self, *args)
            return found + 1e-3 * (found * 0 + 1).cumsum(0)

        return rolled

    return name, wrap


def unmerged(name):
    """Moments that merge without the distance of their means."""

    def wrap(old):
        def merge(self, other):
            found = old(self, other)
            return Moments(found.n, found.mean, self.scatter + other.scatter)

        return merge

    return name, wrap


BROKEN = [  # the law that finds it, what is broken, and how
    ("drift of the path", SDE, scaled("f")),
    ("noise of the path", SDE, scaled("g2")),
    ("noise of the path", SDE, negated("g2")),
    ("clock", Scheduled, scaled("time")),
    ("clock", Cosine, scaled("inverse")),
    ("clock", SubVP, scaled("schedule_value")),
    ("transitions", SDE, ("transition", lambda old: lambda *a: (old(*a)[0], 1.001 * old(*a)[1]))),
    ("readings of every prediction", V, ("skip_and_out", lambda old: lambda self, t: (old(self, t)[0], -old(self, t)[1]))),
    ("readings of every prediction", EDM, ("skip_and_out", lambda old: lambda self, t: (old(self, t)[0], 1.01 * old(self, t)[1]))),
    ("readings of every prediction", Velocity, scaled("velocity")),
    ("readings of every prediction", Exact.__mro__[1], scaled("v")),
    ("exact score", GaussianMixture, scaled("score")),
    ("exact score", GaussianMixture, scaled("log_prob")),
    ("Tweedie", GaussianMixture, scaled("score")),
    ("Fokker–Planck", SDE, scaled("g2")),
    ("Fokker–Planck", SDE, scaled("f")),
    ("continuity", Exact, scaled("velocity")),
    ("score Fokker–Planck", Exact, scaled("score")),
    ("marginals of the forward SDE", SDE, ("transition", lambda old: lambda *a: (old(*a)[0], 1.001 * old(*a)[1]))),
    ("energy", Energy, scaled("energy")),
    ("energy", Energy, negated("score")),
    ("a tiny step of the SDE samplers", EulerMaruyama, ("coefficients", lambda old: lambda *a: (*old(*a)[:2], 1.01 * old(*a)[2]))),
    ("a tiny step of the SDE samplers", SDE, scaled("g2", 1.1)),
    ("identities of samplers", Ancestral, ("coefficients", lambda old: lambda *a: (*old(*a)[:2], 1.01 * old(*a)[2]))),
    ("evaluations", FixedGrid, ("cost", lambda old: lambda self, n: old(self, n) + 1)),
    ("law of the SDE samplers", Ancestral, ("coefficients", lambda old: lambda *a: (*old(*a)[:2], 1.2 * old(*a)[2]))),
    ("random divergence", Hutchinson, ("__call__", lambda old: lambda *a: (old(*a)[0], 1.01 * old(*a)[1]))),
    ("random divergence", ExactDivergence, ("__call__", lambda old: lambda *a: (old(*a)[0], 1.01 * old(*a)[1]))),
    ("random divergence", ItemNoise, scaled("signs")),
    ("variational bound", ContinuousBound, scaled("_part", 0.5)),
    ("variational bound", MatchedPrior, ("kl", lambda old: lambda *a: old(*a) + 0.5)),
    ("density from the score alone", Exact, scaled("score")),
    ("Fréchet distance", Moments, unmerged("merge")),
    ("networks", Attention, rough("forward")),
    ("noise belongs to its item", ItemNoise, by_place("_stack")),
    ("noise belongs to its item", ItemNoise, shared("_stack")),
    ("noise belongs to its item", ItemNoise, scaled("_stack", 1 + 1e-6)),
    ("noise is normal", ItemNoise, scaled("_stack", 1.02)),
    ("noise is normal", ItemNoise, shared("_stack")),
    ("samples belong to their item", ItemNoise, by_place("_stack")),
]  # fmt: skip


def names(row):
    law, owner, (method, _) = row
    return f"{law}: {owner.__name__}.{method}"


@pytest.mark.parametrize(("law", "owner", "change"), BROKEN, ids=map(names, BROKEN))
def test_a_broken_part_is_found(monkeypatch, law, owner, change):
    method, wrap = change
    monkeypatch.setattr(owner, method, wrap(getattr(owner, method)))
    found = check(BY_NAME[law], CPU)
    assert not found.passed and found.where


class Wrong(DDIM):
    """Says that it is better than it is."""

    order = 2


class Late(FixedGrid):
    """Of the right order, to the wrong limit."""

    kind, order, evaluations = "ode", 2, 2

    def step(self, denoiser, xt, i, plan, history, noise):
        inner = Heun()
        return 1.001 * inner.step(denoiser, xt, i, inner.plan(denoiser.sde, torch.stack(plan.t)), history, noise)


@pytest.mark.heavy
@pytest.mark.parametrize("sampler", [Wrong(), Late()], ids=["order", "limit"])
def test_a_sampler_without_its_order_is_found(monkeypatch, sampler):
    monkeypatch.setattr(laws_samplers, "walks", lambda kind: {"a": sampler})
    found = check(BY_NAME["orders of convergence"], CPU)
    assert not found.passed and found.where.startswith("a on")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("law", "owner", "change"),
    [
        ("probability-flow map of a Gaussian", GaussianMixture, scaled("score")),
        ("likelihood by the probability-flow ODE", MatchedPrior, ("log_prob", lambda old: lambda *a: old(*a) + 0.01)),
    ],
)  # fmt: skip
def test_a_broken_part_is_found_by_the_laws_that_take_longest(monkeypatch, law, owner, change):
    test_a_broken_part_is_found(monkeypatch, law, owner, change)


def test_float32_that_is_not_is_found(monkeypatch):
    """Operations that keep 10 bits, as TF32's, and samplers in half precision."""
    conv2d = torch.nn.functional.conv2d

    def rough(x, *args, **more):
        return conv2d(x if x.dtype == torch.float64 else x.half().to(x.dtype), *args, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", rough)
    assert check(BY_NAME["float32 arithmetic"], CPU).where == "convolution"
    assert not check(BY_NAME["float32 arithmetic"], CPU).passed
    monkeypatch.undo()
    monkeypatch.setattr(torch, "exp", lambda x, old=torch.exp: old(x.float()).to(x.dtype))
    assert not check(BY_NAME["float64 arithmetic"], CPU).passed
    monkeypatch.undo()
    walk = Heun.walk
    monkeypatch.setattr(
        Heun, "walk", lambda self, d, x, *a: walk(self, d, x * (1 if x.dtype == torch.float64 else 1.01), *a)
    )
    assert not check(BY_NAME["float32 states"], CPU).passed
    silu = torch.nn.functional.silu
    monkeypatch.setattr(
        torch.nn.functional, "silu", lambda x, **m: silu(x) if x.dtype == torch.float64 else silu(x.detach())
    )
    assert not check(BY_NAME["derivatives of networks"], CPU).passed


def test_each_law_has_a_broken_part_that_it_finds():
    by_itself = {"float32 arithmetic", "float64 arithmetic", "derivatives of networks", "float32 states"}
    assert set(BY_NAME) == {row[0] for row in BROKEN} | SLOW | by_itself
