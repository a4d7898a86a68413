"""Explicit, implicit and sliced score matching: their values, their minimisers, and what separates them."""

from dataclasses import replace

import pytest
import torch
from cases import build, f64, generator, mixture_2d, mixture_of, normal
from torch import nn

from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.kde import KDE
from diffcli.diffusion.kernel_density import GaussianKDE
from diffcli.diffusion.loss import DSM, ESM, ISM, SSM, SSMVR, Loss, TrainingSet
from diffcli.diffusion.loss.ssm import PROJECTIONS
from diffcli.diffusion.prediction import X0, Eps, Score
from diffcli.diffusion.sde import OneLevel
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet
from diffcli.randomness import Draw

IMPLICIT = {"ism": ISM, "ssm": SSM, "ssm_vr": SSMVR}
every_implicit = pytest.mark.parametrize("make", [pytest.param(c, id=n) for n, c in IMPLICIT.items()])
LEVELS = [pytest.param(OneLevel(0.8, 0.4), id="one"), pytest.param(build("vp", "linear", t_min=0.2), id="vp")]
LEVELS.append(pytest.param(build("ve", "geometric", t_min=0.3), id="ve"))
every_level = pytest.mark.parametrize("sde", LEVELS)


class Wrong(Denoiser):
    """`s = factor * the true score + size * sin(A x)`, of any kind of data: smooth, and wrong by a known amount."""

    def __init__(self, sde, mixture, factor=1.0, size=0.3):
        super().__init__(sde)
        self.mixture, self.factor, self.size = mixture, factor, size

    def score(self, xt, t, **cond):
        x = xt.flatten(1)
        true = self.mixture.score(x, self.sde.alpha(t), self.sde.sigma(t)).to(x)
        mixed = x @ normal(5, x.shape[1], x.shape[1]).to(x)
        return (self.factor * true + self.size * torch.sin(mixed)).view_as(xt)

    def parts(self, xt, t, **cond):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return 1 / alpha, sigma**2 / alpha, self.score(xt, t)


def training_set(items, mixture=None):
    return TrainingSet(lambda: items, tuple(items.shape[1:]), None, mixture)


def known(sde, mixture=None) -> Loss:
    mixture = mixture or mixture_2d()
    loss = ESM("known")
    loss.setup(Exact(sde, mixture), training_set(torch.zeros(1, len(mixture.means[0])), mixture))
    return loss


def z_score(a):
    return (a.mean() / (a.std() / len(a) ** 0.5)).item()


def data(n, seed=0):
    return mixture_2d().sample(n, generator(seed))[0]


def jacobian(model, x, t):
    """(B, d, d), row by row."""
    rows = []
    for i in range(len(x)):
        rows.append(torch.autograd.functional.jacobian(lambda v, i=i: model.score(v[None], t[i : i + 1])[0], x[i]))
    return torch.stack(rows)


class Probe(ISM):
    """Keeps the x and the value at which the bracket was taken."""

    def bracket(self, score, x, draw, graph):
        self.x = x.detach()
        return super().bracket(score, x, draw, graph)


@every_level
def test_ism_is_trace_plus_half_the_norm(sde):
    """w [tr J + 1/2 ||s||^2] by a Jacobian made column by column; w is sigma^2 over the levels of a process, else 1."""
    model, loss, x0 = Wrong(sde, mixture_2d(), 0.7), Probe(), data(20)
    values = loss(model, x0, Draw(0, 0))
    t = loss.time(sde, 20, Draw(0, 0))[0]
    trace = jacobian(model, loss.x, t).diagonal(dim1=1, dim2=2).sum(1)
    expected = trace + 0.5 * model.score(loss.x, t).square().sum(1)
    w = sde.sigma(t) ** 2 if sde.is_process else 1.0
    assert values.shape == (20,)
    assert torch.allclose(values, w * expected, rtol=1e-10)


def test_the_trace_in_chunks(monkeypatch):
    """Of 16 dimensions, 16 rows at once or 5; and of items of any shape."""
    from diffcli.diffusion.loss import ism

    sde, mixture, x0 = OneLevel(1.0, 0.3), mixture_of(16), normal(0, 10, 16)
    model = Wrong(sde, mixture)
    whole = ISM()(model, x0, Draw(0, 0))
    monkeypatch.setattr(ism, "CHUNK", 5)
    assert torch.allclose(ISM()(model, x0, Draw(0, 0)), whole, rtol=1e-10)
    assert torch.allclose(ISM()(model, x0.view(10, 1, 4, 4), Draw(0, 0)), whole, rtol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_have_unit_covariance(name, shape):
    """E v v^T = I, independent probes; those on the sphere have length sqrt(d) exactly, signs are signs."""
    v = PROJECTIONS[name](Draw(0, 0), (2, 20_000, *shape), torch.float64).flatten(2)
    d = v.shape[2]
    both = torch.cat([v[0], v[1]], dim=1)
    assert (both.T @ both / len(both) - torch.eye(2 * d)).abs().max() < 0.05
    assert both.mean(0).abs().max() < 0.03
    if name == "sphere":
        assert torch.allclose(v.norm(dim=2), torch.full((), d**0.5, dtype=torch.float64), rtol=1e-12)
    if name == "rademacher":
        assert bool((v.abs() == 1).all())


@every_level
@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("make", [SSM, SSMVR])
def test_the_sliced_losses_have_isms_expectation(make, name, sde):
    """On the same x the difference to ISM has mean 0; more probes lower its variance as 1/K."""
    model, x0 = Wrong(sde, mixture_2d(), 0.7), data(4000)
    exact = ISM()(model, x0, Draw(0, 0))
    errors = {k: make(name, k)(model, x0, Draw(0, 0)) - exact for k in (1, 4)}
    assert all(abs(z_score(e)) < 4 for e in errors.values())
    ratio = (errors[1].var() / errors[4].var()).item()
    assert 2.5 < ratio < 6.5


def test_the_sliced_value_at_one_projection():
    """v^T J v + 1/2 (v s)^2, and 1/2 ||s||^2 in the second term of SSM-VR."""
    sde = OneLevel(1.0, 0.3)
    model, x0 = Wrong(sde, mixture_2d(), 0.7), data(10)
    probe = Probe()
    probe(model, x0, Draw(0, 0))
    x, t = probe.x, torch.zeros(10, dtype=torch.float64)
    v = PROJECTIONS["gaussian"](Draw(0, 0), (1, *x.shape), x.dtype)[0]
    first = torch.einsum("bi,bij,bj->b", v, jacobian(model, x, t), v)
    s = model.score(x, t)
    assert torch.allclose(SSM("gaussian")(model, x0, Draw(0, 0)), first + 0.5 * (v * s).sum(1) ** 2, rtol=1e-10)
    assert torch.allclose(SSMVR("gaussian")(model, x0, Draw(0, 0)), first + 0.5 * s.square().sum(1), rtol=1e-10)


def test_the_variance_reduced_loss_has_no_variance_where_the_jacobian_is_diagonal():
    """For N(0, I) and signs, v^T J v is the trace: SSM-VR is then ISM item by item, SSM is not."""
    mixture = GaussianMixture(f64(1.0), normal(0, 1, 4), torch.eye(4, dtype=torch.float64)[None])
    model, x0 = Wrong(OneLevel(1.0, 0.3), mixture, 0.7, 0.0), normal(1, 50, 4)
    exact = ISM()(model, x0, Draw(0, 0))
    assert torch.allclose(SSMVR()(model, x0, Draw(0, 0)), exact, rtol=1e-10)
    assert (SSM()(model, x0, Draw(0, 0)) - exact).std() > 0.5


@every_level
def test_losses_differ_from_explicit_score_matching_by_a_constant(sde):
    """J(a) - J(b) is the same for ESM, ISM and DSM: paired draws, so that the noise of the data cancels."""
    a, b = Wrong(sde, mixture_2d(), 0.7, 0.4), Wrong(sde, mixture_2d(), 1.2, -0.2)
    x0, draw = data(20_000), Draw(0, 0)
    losses = {"dsm": DSM("simple" if sde.is_process else "uniform"), "esm": known(sde), "ism": ISM()}
    gaps = {name: loss(a, x0, draw) - loss(b, x0, draw) for name, loss in losses.items()}
    assert abs(z_score(gaps["esm"])) > 10  # it is no law about zero
    assert abs(z_score(gaps["dsm"] - gaps["esm"])) < 4
    assert abs(z_score(gaps["ism"] - gaps["esm"])) < 4


@pytest.mark.parametrize("h", [0.2, 0.5])
def test_denoising_at_h_is_explicit_matching_of_the_estimate_of_bandwidth_h(h):
    """Vincent's identity: J_DSM(sigma = h) - J_ESM(KDE of bandwidth h) is free of the model; on every item equally often."""
    items = data(50)
    x0 = items.repeat(1000, 1)
    esm = ESM("kde", h)
    one, bare = OneLevel(1.0, h), OneLevel(1.0, 0.0)
    gaps = []
    for loss, sde in ((DSM("uniform"), one), (esm, bare)):
        loss.setup(Wrong(sde, mixture_2d()), training_set(items))
        # the models must be one function of x, whatever level they are told
        pair = [Wrong(bare, mixture_2d(), 0.7, 0.4), Wrong(bare, mixture_2d(), 1.2, -0.2)]
        for model in pair:
            model.score = Wrong(bare, mixture_2d(), model.factor, model.size).score
            model.sde = sde
            model.eps = lambda x, t, model=model, sde=sde: -sde.sigma(t)[:, None] * model.score(x, t)
        a, b = (loss(model, x0, Draw(0, 0)) for model in pair)
        gaps.append(a - b)
    assert abs(z_score(gaps[1])) > 10
    assert abs(z_score(gaps[0] - gaps[1])) < 4


@every_level
def test_esm_of_the_estimate_is_zero_at_its_own_score_and_draws_from_it(sde):
    items, h = data(40), 0.3
    estimate = GaussianKDE(items, h)

    class Own(Denoiser):
        def score(self, xt, t, **cond):
            self.x = xt
            return estimate.score(xt, sde.alpha(t), sde.sigma(t))

        parts = None

    model, loss = Own(sde), ESM("kde", h)
    loss.setup(model, training_set(items))
    x0 = items.repeat(500, 1)
    assert loss(model, x0, Draw(0, 0)).abs().max() < 1e-20
    t = loss.time(sde, len(x0), Draw(0, 0))[0]
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    z = (model.x - alpha * x0) / torch.sqrt((alpha * h) ** 2 + sigma**2)
    assert (torch.cov(z.T) - torch.eye(2)).abs().max() < 0.05


def test_esm_values_against_their_definition():
    """1/2 sigma^2 ||s - s_true||^2 across levels; the same without the weight at one."""
    for sde in (build("vp", "linear"), OneLevel(0.7, 0.5)):
        model, x0 = Wrong(sde, mixture_2d(), 1.0, 0.3), data(30)
        t, _ = known(sde).time(sde, 30, Draw(0, 0))
        x = sde.perturb(x0, t, Draw(0, 0).normal("eps", x0.shape, x0.dtype))
        error = (model.score(x, t) - mixture_2d().score(x, sde.alpha(t), sde.sigma(t))).square().sum(1)
        w = sde.sigma(t) ** 2 if sde.is_process else 1.0
        values = known(sde)(model, x0, Draw(0, 0))
        assert values.shape == (30,)
        assert torch.allclose(values, 0.5 * w * error, rtol=1e-8, atol=1e-14)


def test_a_linear_score_fitted_by_ism_is_the_inverse_sample_covariance():
    """s = A x + b minimises ISM on the items at A = -S^-1, b = S^-1 mean, S the sample covariance: by Newton's method, exactly."""
    x0 = mixture_of(3, k=1).sample(200, generator(0))[0]

    class Linear(Denoiser):
        def __init__(self):
            super().__init__(OneLevel(1.0, 0.0))
            self.a = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
            self.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def score(self, xt, t, **cond):
            return xt @ self.a.T + self.b

        parts = None

    model, loss = Linear(), ISM()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(model, x0, Draw(0, 0)).mean()
        value.backward()
        return value

    optimizer.step(closure)
    inverse = torch.linalg.inv(torch.cov(x0.T, correction=0))
    assert torch.allclose(model.a.data, -inverse, rtol=1e-5, atol=1e-5)
    assert torch.allclose(model.b.data, inverse @ x0.mean(0), rtol=1e-5, atol=1e-5)


def network(shape=(2,), seed=0):
    torch.manual_seed(seed)
    net = MLP(list(shape), width=8, blocks=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.double()


@every_implicit
@pytest.mark.parametrize("prediction", [Score, Eps, X0, Energy])
def test_gradients_reach_the_weights_through_the_derivative_in_x(prediction, make):
    """d loss / d weight by backpropagation is the central difference."""
    sde = OneLevel(0.9, 0.3)
    model, x0, draw = prediction(sde, network()), data(10), Draw(0, 0)
    make()(model, x0, draw).mean().backward()
    for p in list(model.parameters())[-4:]:
        step, index = 1e-5, tuple(0 for _ in p.shape)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p[index] += sign * step
            with torch.no_grad():  # as in validation
                found = make()(model, x0, draw).mean()
            assert not found.requires_grad
            values.append(found.item())
            with torch.no_grad():
                p[index] -= sign * step
        assert p.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("make", [ISM, SSM, SSMVR, lambda: ESM("kde", 0.3)], ids=["ism", "ssm", "ssm_vr", "esm"])
@pytest.mark.parametrize("prediction", [Score, Energy])
def test_without_noise_the_score_is_the_networks_own(prediction, make):
    """At sigma = 0 every value is finite and has a gradient, and the score of prediction=score is F to the last bit."""
    sde, x0 = OneLevel(1.0, 0.0), data(10)
    model, loss = prediction(sde, network()), make()
    loss.setup(model, training_set(x0))
    values = loss(model, x0, Draw(0, 0))
    values.mean().backward()
    assert torch.isfinite(values).all()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    if prediction is Score:
        t = torch.zeros(10, dtype=torch.float64)
        assert torch.equal(model.score(x0, t), model.network(x0, torch.zeros(10, dtype=torch.float64)))


@pytest.mark.parametrize("make", [ISM, SSM, SSMVR, ESM], ids=["ism", "ssm", "ssm_vr", "esm"])
def test_without_noise_other_predictions_are_refused(make):
    with pytest.raises(ValueError, match="prediction=score"):
        make().setup(Eps(OneLevel(1.0, 0.0), network()), training_set(data(10)))
    with pytest.raises(ValueError, match="noise"):
        DSM().setup(Score(OneLevel(1.0, 0.0), network()), training_set(data(10)))


@every_implicit
def test_trains_a_unet_with_attention(make):
    """The fused attention kernel on the CPU has no second derivative; a few steps lower the loss and reach attention's weights."""
    torch.manual_seed(0)
    sde, x0 = build("vp", "linear", t_min=0.1), torch.randn(16, 1, 4, 4) * 0.3
    net = UNet([1, 4, 4], channels=8, multipliers=[1], attention=[4])
    model, loss = Score(sde, net), make()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(model, x0, Draw(0, 0)).mean()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.1
    qkv = [p for name, p in net.named_parameters() if "qkv" in name]
    assert qkv
    assert all(p.grad.abs().max() > 0 for p in qkv)


def test_the_warning_of_data_that_are_thinner_than_the_noise():
    """Only at one level, and below 100 times the value of a Gaussian of the data's variance, -1/(2 v) a dimension."""
    x0 = 3 * normal(0, 500, 2)
    one, loss = OneLevel(1.0, 0.0), ISM()
    assert loss.warning(-1e9) is None  # before it knows the data
    loss.setup(Score(one, network()), training_set(x0))
    least = -0.5 / x0.var(0).mean().item()
    assert loss.warning(90 * least) is None
    assert f"level.sigma={0.1 * x0.std(0).mean().item():.2g}" in loss.warning(110 * least)
    half = ISM()
    half.setup(Score(OneLevel(0.5, 0.0), network()), training_set(x0))  # half the size, four times the information
    assert half.warning(390 * least) is None and half.warning(410 * least)
    across = ISM()
    across.setup(Score(build("vp", "linear"), network()), training_set(x0))
    assert across.warning(-1e9) is None
    assert DSM().warning(-1e9) is None


def test_on_a_thin_ring_the_value_falls_without_bound_as_the_noise_goes_to_zero():
    """Of the exact score it is -1/2 E||s||^2 -> -1/(2 sigma^2), the ring being thin in one direction, and the warning says so."""
    angle = torch.arange(4000, dtype=torch.float64) * 2 * torch.pi / 4000  # apart by a sixth of the least sigma
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    loss, found, said = ISM(), [], []
    loss.setup(Score(OneLevel(1.0, 0.0), network()), training_set(ring))
    for sigma in (0.3, 0.1, 0.03, 0.01):
        model = KDE(OneLevel(1.0, sigma), [2], len(ring))
        model.fit(training_set(ring))
        with torch.no_grad():
            values = loss(model, ring[::4], Draw(0, 0))
        found.append(2 * sigma**2 * values.mean().item())
        said.append(loss.warning(values.mean().item() / 2) is not None)
    assert found[1:] == pytest.approx([-1, -1, -1], abs=0.15), found  # to three standard errors, sqrt(2/1000)
    assert said == [False, False, True, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SSM("cube"), "rademacher, gaussian, sphere"),
        (lambda: SSMVR("sphere", 0), "probes must be at least 1"),
        (lambda: ESM("data"), "kde, known"),
        (lambda: ESM("kde", 0.0), "bandwidth must be above 0"),
        (lambda: ESM("known").setup(Score(OneLevel(), network()), training_set(data(5))), "loss.target=kde"),
        (lambda: ESM().setup(Score(OneLevel(), network()), training_set(torch.ones(5, 2))), "do not vary"),
        (
            lambda: ESM().setup(Score(OneLevel(), network()), replace(training_set(data(5)), condition="label")),
            "loss=dsm",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_bandwidth_auto_is_scotts():
    items = data(500)
    model, values = Wrong(OneLevel(), mixture_2d()), []
    for bandwidth in ("auto", items.var(0, correction=0).mean().sqrt().item() * 500 ** (-1 / 6)):
        loss = ESM("kde", bandwidth)
        loss.setup(model, training_set(items))
        values.append(loss(model, items[:20], Draw(0, 0)))
    assert torch.allclose(*values, rtol=1e-9)
    assert (values[0] > 0).all()


def test_float32_in_float32_out():
    x0 = data(30).float()
    for loss in (ISM(), SSM(), SSMVR(), known(build("vp", "linear"))):
        values = loss(Wrong(build("vp", "linear"), mixture_2d()), x0, Draw(0, 0))
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
    assert f64(1.0).dtype == torch.float64
