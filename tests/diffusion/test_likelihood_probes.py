"""Probes along a path and over neighbours, and the control variate: unbiased, exact where they should be, and less variance."""

import math

import pytest
import torch
from cases import build, f64, mixture_2d, mixture_of, normal
from test_likelihood import at_t_min, item_noise

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.likelihood import Hutchinson, Likelihood, exponential
from diffcli.diffusion.likelihood.control import Control
from diffcli.diffusion.likelihood.divergence import STRIDES, patterns
from diffcli.diffusion.likelihood.field import Field
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.randomness import ItemNoise

DESIGNS = [("rademacher", "fresh"), ("rademacher", "blocks"), ("gaussian", "blocks"), ("orthogonal", "fixed")]


@pytest.mark.parametrize(("noise", "along"), [*DESIGNS, ("orthogonal", "fresh")])
def test_every_probe_of_every_reading_has_unit_covariance(noise, along):
    x = normal(0, 2000, 1, 2, 2)
    design = Hutchinson(3, noise, along=along)
    for reading in (0, 5):
        e = design.probes(x, item_noise(x), reading).flatten(2)
        for k in range(3):
            cov = e[:, k].T @ e[:, k] / len(e)
            assert e[:, k].mean(0).abs().max() < 0.11 and (cov - torch.eye(4)).abs().max() < 0.16


@pytest.mark.parametrize("along", ["fixed", "fresh", "blocks"])
def test_columns_are_independent_and_other_blocks_draw_anew(along):
    """The products e_i e_j, of which a probe's error is made: of two columns uncorrelated, and of two readings as `along` says."""
    x, design = normal(0, 2000, 4), Hutchinson(2, along=along)
    pairs = [e[:, :, 0] * e[:, :, 1] for e in (design.probes(x, item_noise(x), reading) for reading in (0, 1, 8))]
    for first, second in ((pair[:, 0], pair[:, 1]) for pair in pairs):
        assert (first * second).mean().abs() < 0.1
    near, far = ((pairs[0] * other).mean().abs() for other in pairs[1:])
    assert near > 0.99 if along != "fresh" else near < 0.1
    assert far > 0.99 if along == "fixed" else far < 0.1


@pytest.mark.parametrize("n", sorted(STRIDES))
def test_patterns_are_orthogonal_over_neighbours(n):
    """`sum_k h_k(i) h_k(j) = 0` for pixels beside, and with 8 or more for all within 2 of each other."""
    h = patterns(n, (1, 9, 9))[:, 0]
    assert h.abs().eq(1).all()
    for dy in range(3):
        for dx in range(-2, 3):
            near = dx * dx + dy * dy <= (1 if n == 2 else 2 if n == 4 else 5)
            if near and (dy, dx) != (0, 0):
                a, b = h[:, : 9 - dy, max(0, -dx) : 9 - max(0, dx)], h[:, dy:, max(0, dx) : 9 + min(0, dx)]
                assert (a * b).sum(0).abs().max() == 0, (dy, dx)


def test_orthogonal_probes_are_exact_where_only_neighbours_are_coupled():
    x, kernel = normal(0, 5, 1, 6, 6), normal(1, 1, 1, 3, 3)

    def field(x):
        return torch.nn.functional.conv2d(x, kernel, padding=1)

    design, plain = Hutchinson(8, "orthogonal"), Hutchinson(8)
    found, rough = (d(field, x, d.probes(x, item_noise(x)))[1] for d in (design, plain))
    truth = 36 * kernel[0, 0, 1, 1]
    assert torch.allclose(found.mean(1), truth.expand(5), rtol=1e-12) and (rough.mean(1) - truth).abs().min() > 1e-3


def test_antithetic_probes_change_nothing():
    x, mix, design = normal(0, 5, 6), normal(1, 6, 6), Hutchinson(4)
    e = design.probes(x, item_noise(x))
    one, other = (design(lambda x: x @ mix, x, probes)[1] for probes in (e, -e))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("noise", "along"),
    [pytest.param(*d, marks=() if d[1] == "blocks" and d[0] != "gaussian" else pytest.mark.heavy) for d in DESIGNS],
)
def test_the_variance_of_the_likelihood(noise, along):
    """Against the exact divergence: no bias, less than half of the variance of fixed probes, and errors that are of that size."""
    model = Exact(build("vp", "linear"), mixture_of(16))
    x, _ = at_t_min(model, 120)
    exact = Likelihood("exact", tol=1e9)(model, x, item_noise(x)).log_prob
    found = Likelihood(noise=noise, along=along, tol=1e9)(model, x, item_noise(x))
    fixed = Likelihood(noise="gaussian" if noise == "gaussian" else "rademacher", along="fixed", tol=1e9)
    wrong, plain = found.log_prob - exact, fixed(model, x, item_noise(x)).log_prob - exact
    assert abs(wrong.mean()) < 4 * wrong.std() / 120**0.5
    assert wrong.var() < (0.8 if along == "fixed" else 0.5) * plain.var()
    z = wrong / found.std_err
    assert z.std() < 1.05 if noise == "orthogonal" else 0.85 < z.std() < 1.6


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("path", [("vp", "linear"), ("ve", "geometric"), ("flow", "logit")], ids="-".join)
def test_the_control_is_exact_for_gaussian_data(path, noise):
    """A linear field: nothing is left to the probes, and without it there is."""
    cov = mixture_of(5).covs[:1]
    model = Exact(build(*path), GaussianMixture(f64(1.0), normal(0, 1, 5), cov))
    x, _ = at_t_min(model, 6)

    def measured(**settings):
        likelihood = Likelihood(probes=3, tol=1e9, **settings)
        likelihood.setup(model, TrainingSet(lambda: x, (5,)))
        return likelihood(model, x, item_noise(x))

    exact, plain, found = (
        measured(divergence="exact"),
        measured(noise=noise),
        measured(noise=noise, control="moments"),
    )
    assert (found.log_prob - exact.log_prob).abs().max() < 1e-8 and found.std_err.max() < 1e-8
    assert plain.std_err.min() > 1e-6


def test_items_taken_twice_keep_their_probes_and_what_is_known_of_them():
    model = Exact(build("vp", "linear"), mixture_of(4))
    x, _ = at_t_min(model, 6)
    field = Field(model, Hutchinson(3, along="fresh"), item_noise(x), {}, Control(mixture_of(4).covs[0]))
    part, few = field.take(torch.tensor([5, 1, 4])).take(torch.tensor([2, 0])), [4, 5]
    for t in (f64(0.3), f64(0.5)):  # a reading each
        whole, found = (f(y, t, f64(0.4), f64(0.7)).div for f, y in ((field, x), (part, x[few])))
        assert torch.allclose(found, whole[few], rtol=1e-12)


def test_varying_probes_move_neither_the_state_nor_the_solvers_error(monkeypatch):
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 32)
    found, exact = (Likelihood(d, tol=1e9)(model, x, item_noise(x)) for d in ("hutchinson", "exact"))
    assert torch.equal(found.x1, exact.x1)
    monkeypatch.setattr(exponential, "SAFETY", 1e6)  # the integrals' part alone
    wide = Exact(
        build("vp", "linear"), GaussianMixture(f64(1.0), normal(0, 1, 16), 0.01 * torch.eye(16).double()[None])
    )
    y, _ = at_t_min(wide, 16)
    errors = [Likelihood(d, steps=16, tol=1e9)(wide, y, item_noise(y)).solver_err for d in ("hutchinson", "exact")]
    assert 0.5 < errors[0].median() / errors[1].median() < 2
    monkeypatch.undo()
    others = Likelihood(tol=1e9)(model, x, ItemNoise(1, range(32), (2,), torch.float64))
    assert torch.equal(others.solver_err, found.solver_err) and not torch.equal(others.log_prob, found.log_prob)


def test_intervals_from_two_probes_cover_as_many_as_they_say():
    model = Exact(build("vp", "linear"), mixture_of(6))
    x, _ = at_t_min(model, 150)
    found, exact = (Likelihood(d, 2, steps=16, tol=1e9)(model, x, item_noise(x)) for d in ("hutchinson", "exact"))
    held = ((found.log_prob - exact.log_prob).abs() < 12.706 * found.std_err).double().mean()  # Student's t, one degree
    assert 0.88 < held < 0.995


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(solver="rk45", along="fresh"), "must be fixed along the path"),
        (dict(noise="orthogonal", along="blocks"), "twice over"),
        (dict(noise="orthogonal", probes=1), "at least 2"),
        (dict(along="never"), "along must be one of"),
        (dict(control="mean"), "control must be one of"),
    ],
)
def test_refusals(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Likelihood(**settings)


def test_the_control_needs_training_items():
    model = Exact(build("vp", "linear"), mixture_2d())
    x, _ = at_t_min(model, 2)
    with pytest.raises(ValueError, match="call setup first"):
        Likelihood(control="moments")(model, x, item_noise(x))
    wide = TrainingSet(lambda: x, (math.isqrt(2**26),))
    with pytest.raises(ValueError, match="control=moments decomposes"):
        Likelihood(control="moments").setup(model, wide)
