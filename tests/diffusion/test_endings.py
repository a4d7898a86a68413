"""Every solver ends: with finite numbers, or by an `Ended` that names what, at which t, after how many evaluations, for whom."""

import ast
import math
import pickle
from pathlib import Path

import pytest
import torch
from cases import Recorder, build, f64, mixture_2d, normal
from sampler_cases import CONF, FITTED, SAMPLERS, over

import diffcli
from diffcli.diffusion.denoiser import Denoiser, evaluations
from diffcli.diffusion.encoding import Encoding
from diffcli.diffusion.endings import Ended, fine
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam, UniformT
from diffcli.diffusion.likelihood import EnergyDensity, Likelihood, PathIntegral
from diffcli.diffusion.numeric import transformed
from diffcli.diffusion.samplers import DDIM, RK45, AdaptiveSDE, DPMAdaptive, Euler, Resample, sample
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise
from diffcli.sampling import draw_samples
from diffcli.training.neural_ode import NeuralODE

ROW, BAD_T = 2, 0.43  # the item that goes wrong, and from which t on


class Spoiled(Denoiser):
    """The exact model, whose x0_hat is something else in one row below a time: `wrong(x0_hat, x, t (B,) or ())`."""

    def __init__(self, sde, wrong, below: float = math.inf, row: int | None = ROW):
        super().__init__(sde)
        self.inner, self.wrong, self.below, self.row = Exact(sde, mixture_2d()), wrong, below, row

    def parts(self, xt, t, **cond):
        x0 = self.inner(xt, t, **cond)
        here = (t <= self.below).to(x0.device).expand(len(xt))
        if self.row is not None:
            here = here & (torch.arange(len(xt)) == self.row)
        wrong = self.wrong(x0, xt, t.to(x0).expand(len(xt))[:, None])
        return torch.zeros_like(t), torch.ones_like(t), torch.where(here[:, None], wrong, x0)


WRONG = {
    "nan": lambda x0, x, t: torch.full_like(x0, math.nan),
    "inf": lambda x0, x, t: torch.full_like(x0, math.inf),
    "-inf in one coordinate": lambda x0, x, t: torch.cat([x0[:, :1], torch.full_like(x0[:, 1:], -math.inf)], 1),
}
ODD = {
    "pole in t": lambda x0, x, t: x0 + 1e-3 / (t - BAD_T),
    "1/t": lambda x0, x, t: x0 / t,
    "jump in t": lambda x0, x, t: torch.where(t < BAD_T, x0 + 3, x0),
    "jump in x": lambda x0, x, t: 2 * torch.sign(x),
    "stiff": lambda x0, x, t: -300 * x,
    "explodes": lambda x0, x, t: 1e6 * x + 1e30,
    "constant": lambda x0, x, t: torch.full_like(x0, 0.5),
    "zero": lambda x0, x, t: torch.zeros_like(x0),
    "root of what may be negative": lambda x0, x, t: (1 - x.square()).sqrt(),
}


def walk(sampler, model, n=4, steps=11, last=None, dtype=torch.float64):
    noise = ItemNoise(3, range(n), (2,), dtype)
    return sample(model, sampler, noise(0), UniformLam()(model.sde, steps), noise, last)


def asked(sampler, sde, steps=11) -> list[float]:
    """The times of a fixed-grid walk's evaluations."""
    model = Recorder(Exact(sde, mixture_2d()))
    walk(sampler, model, steps=steps)
    # of a derivative in t, the time is that of the evaluation before it
    return [math.nan if transformed(t) else t.item() for _, t in model.calls]


def yamls():
    return {p.stem: SAMPLERS[p.stem] for p in sorted(CONF.glob("*.yaml")) if p.stem not in FITTED}


def test_all_samplers_are_here():
    assert len(yamls()) >= 33


@over(SAMPLERS)
@pytest.mark.parametrize(
    ("wrong", "below"), [("nan", math.inf), ("nan", BAD_T), ("inf", BAD_T)], ids=["at once", "from a t on", "inf"]
)
def test_a_model_that_is_not_finite_is_named(sampler, wrong, below):
    """Of a fixed grid the first evaluation that is not finite; of adaptive steps as near to it as they come."""
    sde = build("vp", "linear")
    with pytest.raises(Ended) as found:
        walk(sampler, Spoiled(sde, WRONG[wrong], below))
    error = found.value
    assert error.row == ROW and error.clock == "t" and isinstance(error, NumericalError) and error.exit_code == 4
    assert type(sampler).__name__ in str(error) and f"item {ROW}" in str(error) and "finite" in str(error)
    if sampler.evaluations is None:
        assert error.at == pytest.approx(min(below, sde.t_max), abs=0.01 if below < 1 else 1e-9)
        assert error.nfe == 1 or below < 1
        return
    times = asked(sampler, sde)
    first = next(k for k, t in enumerate(times) if t <= below)
    assert error.at == pytest.approx(times[first], rel=1e-12) and error.nfe == first + 1
    assert f"at t = {times[first]:.4g} after {first + 1} evaluation" in str(error)


@over(yamls())
@pytest.mark.parametrize("odd", ODD)
def test_every_sampler_ends(sampler, odd):
    """In finite numbers, or by saying why; items without the fault come out the same or are told of nothing."""
    sde, solver = build("vp", "linear"), getattr(sampler, "solver", None)
    budget = 400
    if solver is not None:
        sampler = type(sampler)(max_nfe=budget)
    model = Spoiled(sde, ODD[odd])
    try:
        found = walk(sampler, model, dtype=torch.float32)
    except Ended as error:
        assert error.row == ROW and sde.t_min <= error.at <= sde.t_max and error.nfe >= 1
        if solver is not None:
            assert error.nfe <= budget + 7
    else:
        assert found.x.isfinite().all()
        if solver is not None:
            assert found.nfe.max() <= budget + 7
    assert evaluations(model.inner) < 5000


def test_some_of_them_do_not_get_through():
    """The faults above are faults: a pole, a stiff and an exploding field end adaptive steps, and an explosion fixed ones."""
    sde = build("vp", "linear")
    for odd in ("explodes", "pole in t", "stiff"):
        with pytest.raises(Ended):
            walk(RK45(max_nfe=400), Spoiled(sde, ODD[odd]), dtype=torch.float32)
    with pytest.raises(Ended, match="x is not finite|estimate is not finite"):
        walk(Euler(), Spoiled(sde, ODD["explodes"]), dtype=torch.float32)


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 40])
def test_the_step_is_found_wherever_the_looks_lie(steps):
    sde = build("vp", "linear")
    times = UniformLam()(sde, steps)
    for k in {0, 7, 15, 16, 17, 31, 39} & set(range(steps)):
        model = Spoiled(sde, WRONG["nan"], below=times[k].item())
        with pytest.raises(Ended) as found:
            walk(DDIM(), model, steps=steps)
        assert found.value.at == times[k] and found.value.nfe == k + 1


def test_an_overflow_that_no_evaluation_shows_is_the_samplers():
    class Tilted(DDIM):
        def coefficients(self, sde, t, s):
            p, q, c = super().coefficients(sde, t, s)
            return p * torch.where(t < BAD_T, math.inf, 1.0), q, c

    sde = build("vp", "linear")
    with pytest.raises(Ended, match="Tilted: x is not finite, though the model's estimate is") as found:
        walk(Tilted(), Exact(sde, mixture_2d()), dtype=torch.float64, steps=30)
    assert found.value.at < BAD_T and found.value.hint


def test_a_start_that_is_not_finite_is_no_fault_of_the_model():
    sde = build("vp", "linear")
    x = normal(0, 4, 2)
    x[1, 0] = math.nan
    for sampler in (DDIM(), RK45()):
        with pytest.raises(Ended, match="not finite before the first step|met a non-finite value at t = 1 ") as found:
            sample(Exact(sde, mixture_2d()), sampler, x, UniformLam()(sde, 5), None)
        assert found.value.row == 1


@pytest.mark.parametrize("sampler", [DDIM(), RK45(), AdaptiveSDE()], ids=["ddim", "rk45", "adaptive_sde"])
def test_the_last_estimate_is_looked_at_too(sampler):
    """last=denoise: a model that fails at the end alone, where no step asks it."""
    sde = build("vp", "linear")
    end = UniformLam()(sde, 11)[-1].item()
    model = Spoiled(sde, WRONG["nan"])
    model.wrong = lambda x0, x, t: torch.where(t == torch.tensor(end, dtype=x.dtype), math.nan, x0)
    model.below = end
    if sampler.evaluations is None:  # their last attempt asks there too
        pytest.raises(Ended, walk, sampler, model, last="denoise")
        return
    assert walk(sampler, model, last="stop").x.isfinite().all()
    with pytest.raises(Ended, match="last estimate is not finite") as found:
        walk(sampler, model, last="denoise")
    assert found.value.at == end and found.value.nfe == 12 and found.value.row == ROW


def test_values_whose_sum_overflows_are_finite():
    big = torch.full((4, 50), 3e38)
    assert fine(big) and fine(big, -big) and not fine(big, torch.tensor([[math.nan]]))
    assert not fine(torch.tensor([[math.inf, -math.inf]]))


@pytest.mark.parametrize("make", [RK45, DPMAdaptive, AdaptiveSDE])
def test_the_budget_is_the_users(make):
    sde = build("vp", "linear")
    whole = walk(make(tol=0.01), Exact(sde, mixture_2d()))
    most = int(whole.nfe.max())
    with pytest.raises(Ended, match=rf"tol = 0.01 takes more than {most // 2} evaluations, stopped at t = ") as found:
        walk(make(tol=0.01, max_nfe=most // 2), Exact(sde, mixture_2d()))
    assert "max_nfe" in found.value.hint and most // 2 < found.value.nfe <= most // 2 + 7
    raised = walk(make(tol=0.01, max_nfe=most), Exact(sde, mixture_2d()))
    assert torch.equal(raised.x, whole.x)
    with pytest.raises(ValueError, match="max_nfe must be at least 1, got 0"):
        make(max_nfe=0)


def test_a_step_that_goes_too_far_is_taken_again_in_smaller_ones():
    """A field that is no number beyond where the way leads does not stop it."""
    sde = build("vp", "linear")
    plain, n = Exact(sde, mixture_2d()), 64
    start = ItemNoise(3, range(n), (2,), torch.float64)(0)
    times = UniformLam()(sde, 1)
    clean = Recorder(plain)
    expected = sample(clean, RK45(1e-6), start, times, None).x
    coarse = Recorder(plain)
    sample(coarse, RK45(0.3), start, times, None)
    extremes = [max(x.abs().max().item() for x, _ in m.calls) for m in (clean, coarse)]
    edge = 1.01 * extremes[0]
    model = Spoiled(sde, lambda x0, x, t: torch.where(x.abs().amax(1, keepdim=True) > edge, math.nan, x0), row=None)
    assert extremes[1] > edge, "the coarse walk must leave the region, or this shows nothing"
    assert (sample(model, RK45(0.3), start, times, None).x.isfinite()).all()
    assert torch.allclose(sample(model, RK45(1e-6), start, times, None).x, expected, atol=1e-6)


def test_what_is_padded_on_cannot_end_a_run():
    """Samples that nobody asked for fill up a batch; theirs would be an end of its own."""
    sde = build("vp", "linear")
    model, times = Spoiled(sde, WRONG["nan"], row=None), UniformT()(sde, 6)
    alone = next(draw_samples(Exact(sde, mixture_2d()), DDIM(), times, (2,), 16, 0, dtype=torch.float64)).x
    # a fault at x of sample 12 alone, by where it starts
    begin = ItemNoise(0, [12], (2,), torch.float64)(0) * sde.prior_std

    def wrong(x0, x, t):
        return torch.where((x - begin).abs().amax(1, keepdim=True) < 1e-9, math.nan, x0)

    model.wrong = wrong
    few = next(draw_samples(model, DDIM(), times, (2,), 10, 0, dtype=torch.float64)).x
    assert torch.allclose(few, alone[:10], atol=1e-12)
    with pytest.raises(Ended, match=r"\(sample 12\)"):
        list(draw_samples(model, DDIM(), times, (2,), 16, 0, dtype=torch.float64))


def test_the_sample_is_named_by_its_number():
    sde = build("vp", "linear")
    with pytest.raises(
        Ended, match=r"DDIM: the model's estimate is not finite at t = 1 after 1 evaluation \(sample 34\)"
    ):
        list(draw_samples(Spoiled(sde, WRONG["nan"], row=2), DDIM(), UniformT()(sde, 6), (2,), 40, 0, 16, first=32))


def test_an_end_is_sent_between_processes():
    error = Ended("why", "hint", at=0.25, nfe=3, row=1, who="X").said(item="sample 9")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "X: why at t = 0.25 after 3 evaluations (sample 9)"
    assert (again.hint, again.row, again.at, again.nfe) == ("hint", 1, 0.25, 3)


SOLVERS = ["exponential", "rk45", "rk4", "heun"]


def likelihood_of(model, solver, **more):
    x = normal(5, 4, 2)
    return Likelihood("exact", solver=solver, **more)(model, x, ItemNoise(0, range(4), (2,)))


def from_above(wrong):
    """The fault where t is large: a likelihood walks up."""
    return lambda x0, x, t: torch.where(t >= BAD_T, wrong(x0, x, t), x0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_likelihood_says_where_it_ends(solver, wrong):
    sde = build("vp", "linear")
    for made in (WRONG[wrong], from_above(WRONG[wrong])):
        with pytest.raises(Ended, match="^the likelihood: .* at t = .* after .* evaluation") as found:
            likelihood_of(Spoiled(sde, made), solver)
        assert found.value.row == ROW and 1 <= found.value.nfe < 5000
        low = sde.t_min if made is WRONG[wrong] else BAD_T * 0.999
        assert low <= found.value.at <= sde.t_max


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("odd", ["pole in t", "1/t", "jump in t", "stiff", "explodes", "constant", "zero"])
def test_every_likelihood_ends(solver, odd):
    sde = build("vp", "linear")
    model = Spoiled(sde, lambda x0, x, t: ODD[odd](x0, x, t) + 0 * x)
    try:
        found = likelihood_of(model, solver, max_nfe=400)
    except Ended as error:
        assert error.row == ROW and sde.t_min <= error.at <= sde.t_max
    else:
        assert found.log_prob.isfinite().all() and found.nfe.max() <= 1500
    assert evaluations(model.inner) < 10_000


def test_the_budget_of_a_likelihood_is_the_users():
    sde = build("vp", "linear")
    with pytest.raises(Ended, match="takes more than 30 evaluations, stopped at t = "):
        likelihood_of(Exact(sde, mixture_2d()), "rk45", max_nfe=30)


class Items:
    shape, levels = (2,), None

    def items(self):
        return normal(5, 30, 2)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_path_integral_says_where_it_ends(wrong):
    for grid, edge in ((0, 10.0), (16, 1.0)):
        spoil = WRONG[wrong]
        model = Spoiled(
            build("vp", "linear"),
            lambda x0, x, t, e=edge: torch.where(x[:, :1] > e, spoil(x0, x, t), x0),  # noqa: B023
            row=None,
        )
        path = PathIntegral(grid=grid)
        path.setup(model, Items())
        said = "on the grid" if grid else f"item {ROW} of its batch"
        x = normal(5, 4, 2).clamp(-0.5, 0.5)
        x[ROW, 0] = 30.0
        with pytest.raises(Ended, match=f"score is not finite on the line to an item, at t = 1e-05 after .*{said}"):
            path(model, x, None)


def test_an_energy_says_where_it_ends():
    class Flat(torch.nn.Module):
        def forward(self, x, c_noise):
            return x * torch.where(x[:, :1] > 0, math.nan, 1.0)

    model, energy = Energy(build("vp", "linear"), Flat()), EnergyDensity(grid=0)
    energy.setup(model, Items())
    x = f64([-1, 1], [-2, 1], [3, 1])
    with pytest.raises(Ended, match=r"the energy is not finite at t = 1e-05 after 1 evaluation \(item 2"):
        energy(model, x.float(), None)


def test_encoding_and_decoding_end():
    sde, noise = build("vp", "linear"), ItemNoise(0, range(4), (2,), torch.float64)
    model = Spoiled(sde, WRONG["nan"], below=0.5)
    for sampler in (DDIM(), RK45()):
        encoding = Encoding(sampler, UniformLam()(sde, 9))
        for way in (encoding.encode, encoding.decode):
            with pytest.raises(Ended) as found:
                way(model, normal(1, 4, 2)) if way == encoding.decode else way(model, normal(1, 4, 2), noise)
            assert found.value.row == ROW and found.value.at <= 0.5 + 1e-6


def test_repaint_ends_in_a_later_pass():
    """The counters of its noise come again when the step is walked a second time to find where it broke."""
    sde = build("vp", "linear")
    with pytest.raises(Ended) as found:
        walk(Resample(DDIM(1.0), resamples=3, jump=2), Spoiled(sde, WRONG["nan"], BAD_T), steps=12)
    assert found.value.at <= BAD_T and found.value.row == ROW


FIELDS = {
    "nan": lambda t, x: x * math.nan,
    "inf": lambda t, x: x / 0,
    "nan from some t on": lambda t, x: torch.where(t > 0.3, math.nan, -x),
    "pole": lambda t, x: x / (0.3 - t).clamp(min=0) ** 2,
    "stiff": lambda t, x: -1e7 * (x - torch.cos(1e5 * t)),
    "explodes": lambda t, x: 1e20 * x.square() + 1,
}


class Drift(torch.nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn, self.w = fn, torch.nn.Parameter(torch.ones(()))

    def forward(self, t, y):
        return self.w * self.fn(t, y[0]), y[1] * 0


@pytest.mark.parametrize("solver", ["rk45", "rk4", "midpoint"])
@pytest.mark.parametrize("gradient", ["adjoint", "backprop"])
@pytest.mark.parametrize("field", FIELDS)
def test_the_ode_of_a_training_ends(solver, gradient, field):
    x = normal(0, 3, 2).float()
    try:
        y, _ = NeuralODE(300)(Drift(FIELDS[field]), (x, x.new_zeros(3)), 0.0, 1.0, gradient, solver, 1e-5, 20)
    except NumericalError as error:
        assert "t =" in str(error) or "tol" in str(error)
    else:
        assert y.isfinite().all() and field not in ("nan", "inf", "nan from some t on")


def test_no_assert_does_work():
    """`python -O` drops them."""
    found = [
        f"{path.relative_to(Path(diffcli.__file__).parent)}:{node.lineno}"
        for path in sorted(Path(diffcli.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id == "__debug__")
    ]
    assert not found
