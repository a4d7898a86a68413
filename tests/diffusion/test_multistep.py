"""Exponential integrators to round-off, the forms of the PF-ODE, and what multistep samplers are equal to."""

import itertools
import math

import mpmath
import pytest
import torch
from cases import SCHEDULES, SDES, build, every_path, f64, mixture_2d, no_noise, normal
from sampler_cases import ODE, over

from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Karras, UniformLam, UniformT
from diffcli.diffusion.guidance import Rescaled
from diffcli.diffusion.samplers import DDIM, LMS, PNDM, Deis, DPMpp2M, DPMpp3M, Euler, UniPC, sample
from diffcli.diffusion.samplers.form import EpsForm, LForm, TForm, VForm, X0Form
from diffcli.diffusion.samplers.phi import gauss_legendre, lagrange_weights, phi

FORMS = {"eps": EpsForm(), "x0": X0Form(), "v": VForm(), "v-0.3": VForm(0.3), "t": TForm(), "lam": LForm()}
LAM_FORMS = {name: FORMS[name] for name in ("eps", "x0", "v", "v-0.3")}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_lam_form = pytest.mark.parametrize("form", LAM_FORMS.values(), ids=LAM_FORMS)


def integral(fn, a=0.0, b=1.0) -> float:
    with mpmath.workdps(30):
        return float(mpmath.quad(fn, [a, (a + b) / 2, b]))


@pytest.mark.parametrize("k", range(6))
def test_phi_functions_to_round_off(k):
    """Against the hypergeometric function that they are, phi_k(z) = 1F1(1; k + 1; z)/k!, in 50 digits."""
    for z in [0.0, *(s * 10.0**e for s in (-1, 1) for e in (-12, -6, -3, -1, 0, 0.3, 0.6, 1, 1.4))]:
        with mpmath.workdps(50):
            exact = float(mpmath.hyp1f1(1, k + 1, z) / mpmath.factorial(k))
        assert phi(k, z) == pytest.approx(exact, rel=1e-13)


def test_phi_functions_are_the_integrals_of_their_definition():
    for k, z in itertools.product((1, 2, 3, 4), (-2.0, 0.5, 3.0)):
        exact = integral(lambda u, k=k, z=z: mpmath.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1))
        assert phi(k, z) == pytest.approx(exact, rel=1e-14)


@every_lam_form
def test_moments_are_integrals_of_powers(form):
    """`∫ u^m drho` from lam = a to b, for short and for long steps."""
    for a, b in ((-5.0, -4.99), (-1.0, 0.5), (0.3, 0.30001), (-4.0, 6.0), (2.0, 9.0)):
        for m, found in enumerate(form.moments(a, b, 4)):
            exact = integral(lambda u, m=m, a=a, h=b - a: u**m * slope(form, a + h * u) * h)
            assert found == pytest.approx(exact, rel=1e-12)


def slope(form, lam):
    """drho/dlam in many digits, from the definition of rho."""
    rho = {
        EpsForm: lambda v: mpmath.exp(-v),
        X0Form: mpmath.exp,
        VForm: lambda v: mpmath.atan(mpmath.exp(-v) / form.c),
    }[type(form)]
    return mpmath.diff(rho, lam)


@every_lam_form
def test_slope_is_that_of_rho(form):
    for lam in (-6.0, -0.4, 0.0, 2.5):
        assert form.slope(lam) == pytest.approx(float(slope(form, lam)), rel=1e-12)
        there = f64(lam)
        assert torch.allclose(form.to_lam(form.of_lam(there)), there, rtol=1e-9, atol=1e-9)


@every_form
@every_path
def test_every_form_is_the_pf_ode(sde, form):
    """d(x/scale)/dt = g drho/dt for dx/dt = f x - g^2 score / 2, by differences."""
    model, x, h = Exact(sde, mixture_2d()), normal(0, 8, 2), 1e-6
    for t in f64(0.2004, 0.6004):
        p, q = (c.item() for c in form.reading(sde, t))
        scale, near = form.scale(sde, t), torch.stack([t - h, t + h])
        drho, dscale = (c.diff().item() / (2 * h) for c in (form.rho(sde, near), form.scale(sde, near)))
        velocity = sde.f(t) * x - 0.5 * sde.g2(t) * model.score(x, t)
        dy = velocity / scale - x * dscale / scale**2
        size = (velocity / scale).abs().max().item()  # the two terms may cancel to little
        assert torch.allclose(model.reading(x, t, p, q) * drho, dy, rtol=1e-5, atol=1e-6 * size)
        assert torch.allclose(form.time(sde, form.rho(sde, t)), t, rtol=1e-9)


def test_gauss_legendre_integrates_polynomials_and_exponentials():
    for width in (0.1, 3.0, 12.0):
        u, w = gauss_legendre(width)
        assert w.sum().item() == pytest.approx(1, rel=1e-14)
        assert (w * u**7).sum().item() == pytest.approx(1 / 8, rel=1e-13)
        assert (w * torch.exp(width * u)).sum().item() == pytest.approx(math.expm1(width) / width, rel=1e-12)


def test_equal_steps_give_the_classical_adams_bashforth_weights():
    for points, expected in {2: [3, -1, 2], 3: [23, -16, 5, 12], 4: [55, -59, 37, -9, 24]}.items():
        found = lagrange_weights([-float(j) for j in range(points)], [1 / (m + 1) for m in range(points)])
        assert found == pytest.approx([c / expected[-1] for c in expected[:-1]], rel=1e-12)


# forms that hold a constant x0 and eps: not dx/dt and dx/dlam, and v only to its order
CONSTANT = {
    n: s
    for n, s in ODE.items()
    if s.clock == "lam" and getattr(s, "variable", None) != "lam" and type(getattr(s, "form", None)) is not VForm
}


@over(CONSTANT)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_constant_model_is_solved_exactly(sampler, scale):
    """Data at one point, x0_hat = m: x_s = alpha_s m + (sigma_s/sigma_t)(x - alpha_t m)."""
    sde, point = build("vp", "linear"), scale * f64([1.0, -2.0])
    tiny = GaussianMixture(f64(1.0), point, 1e-24 * torch.eye(2, dtype=torch.float64)[None])
    x, times = normal(0, 5, 2), Karras()(sde, 6)
    (a_t, a_s), (s_t, s_s) = sde.alpha(times[[0, -1]]), sde.sigma(times[[0, -1]])
    found = sample(Exact(sde, tiny), sampler, x, times, no_noise).x
    assert torch.allclose(found, a_s * point + s_s / s_t * (x - a_t * point), rtol=1e-6, atol=1e-6)


@every_path
def test_v_is_exact_for_gaussian_data_of_its_scale(sde):
    """N(0, c^2 I) makes F vanish: x_s = (r_s/r_t) x in one step."""
    c = 0.6
    gaussian = GaussianMixture(f64(1.0), f64([0.0, 0.0]), c**2 * torch.eye(2, dtype=torch.float64)[None])
    x, times = normal(0, 5, 2), UniformLam()(sde, 1)
    r = torch.sqrt((c * sde.alpha(times)) ** 2 + sde.sigma(times) ** 2)
    found = sample(Exact(sde, gaussian), Deis(order=1, variable="v", sigma_data=c), x, times, no_noise).x
    assert torch.allclose(found, r[1] / r[0] * x, rtol=1e-9, atol=1e-12)


def walks(sde, times, *samplers):
    model, x = Exact(sde, mixture_2d()), sde.sample_prior(normal(0, 7, 2))
    return [sample(model, s, x, times, no_noise).x for s in samplers]


@every_path
@pytest.mark.parametrize("grid", [UniformLam(), Karras(), UniformT()], ids=["lam", "karras", "t"])
def test_the_third_order_is_one_method(sde, grid):
    """DPM-Solver++(3M) with its factor is exponential Adams-Bashforth in x0, and UniPC's predictor has the same weights."""
    ours, deis = walks(sde, grid(sde, 11), DPMpp3M(), Deis(order=3, variable="x0"))
    assert torch.allclose(ours, deis, rtol=1e-9, atol=1e-9)
    lam = sde.lam(grid(sde, 11)).tolist()
    for i, points in ((0, 1), (1, 2), (5, 3)):
        exact = UniPC(3, variant="exact").weights(i, points, lam)
        assert exact == pytest.approx(Deis(3, "x0").weights(i, points, lam), rel=1e-8)
        if points != 2:  # where the variants differ
            assert UniPC(3, variant="bh2").weights(i, points, lam) == pytest.approx(exact, rel=1e-8)


@every_path
def test_first_orders_are_ddim(sde):
    ddim, *rest = walks(sde, UniformLam()(sde, 9), DDIM(), Euler("sigma"), Deis(1), Deis(1, "x0"), LMS(1))
    for found in rest:
        assert torch.allclose(found, ddim, rtol=1e-9, atol=1e-9)


def test_dpmpp_2m_is_its_algorithm():
    """Lu et al. 2022, alg. 2, with the readings of the walk itself."""
    sde = build("vp", "cosine")
    model, times, x = Exact(sde, mixture_2d()), UniformT()(sde, 8), normal(0, 6, 2)
    found = sample(model, DPMpp2M(), x, times, no_noise).x
    before, h_before = None, None
    for t, s in itertools.pairwise(times):
        x0, h = model(x, t), sde.lam(s) - sde.lam(t)
        d = x0 if before is None else (1 + h / (2 * h_before)) * x0 - h / (2 * h_before) * before
        x = sde.sigma(s) / sde.sigma(t) * x - sde.alpha(s) * torch.expm1(-h) * d
        before, h_before = x0, h
    assert torch.allclose(found, x, rtol=1e-9, atol=1e-9)


def test_the_released_third_order_is_its_code_and_differs():
    """D2 without its factor 2: the released update, written with expm1 as the released code writes it."""
    sde = build("vp", "linear")
    model, times, x = Exact(sde, mixture_2d()), UniformT()(sde, 9), normal(0, 6, 2)
    released = sample(model, DPMpp3M(released=True), x, times, no_noise).x
    lam, x0s = sde.lam(times), []
    assert (released - sample(model, DPMpp3M(), x, times, no_noise).x).abs().max() > 1e-3
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        x0s.insert(0, model(x, t))
        h = lam[i + 1] - lam[i]
        phi_1 = torch.expm1(-h)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        x = sde.sigma(s) / sde.sigma(t) * x - sde.alpha(s) * phi_1 * x0s[0]
        if i == 1:
            x = x + sde.alpha(s) * phi_2 * (x0s[0] - x0s[1]) * h / (lam[i] - lam[i - 1])
        elif i > 1:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            d10, d11 = (x0s[0] - x0s[1]) / r0, (x0s[1] - x0s[2]) / r1
            d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
            x = x + sde.alpha(s) * phi_2 * d1 - sde.alpha(s) * phi_3 * d2
    assert torch.allclose(released, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_algorithm(order, variant):
    """Zhao et al. 2023, alg. 5-8: the systems R rho B(h) = phi, solved step by step, and rho = 1/2 where one is unknown."""
    sde = build("vp", "linear")
    model, times, x = Exact(sde, mixture_2d()), UniformT()(sde, 8), normal(0, 6, 2)
    found = sample(model, UniPC(order, variant=variant), x, times, no_noise).x
    lam, m, base = sde.lam(times), [], None

    def system(i, p):
        h = -(lam[i + 1] - lam[i])
        big = torch.expm1(h) if variant == "bh2" else h
        r = torch.stack([(lam[i - k] - lam[i]) / -h for k in range(1, p)] + [torch.ones_like(h)])
        g, b, factor = torch.expm1(h) / h - 1, [], 1
        for k in range(1, p + 1):
            b.append(g * factor / big)
            factor *= k + 1
            g = g / h - 1 / factor
        return h, big, r, torch.stack([r**k for k in range(p)]), torch.stack(b)

    for i in range(8):
        new = model(x, times[i])
        if i > 0:  # correct the step that led here
            p = min(i, order)
            h, big, r, matrix, b = system(i - 1, p)
            rho = f64(0.5) if p == 1 else torch.linalg.solve(matrix, b)
            res = sum(rho[k] * (m[k + 1] - m[0]) / r[k] for k in range(p - 1)) + rho[-1] * (new - m[0])
            ratio, alpha = sde.sigma(times[i]) / sde.sigma(times[i - 1]), sde.alpha(times[i])
            x = ratio * base - alpha * torch.expm1(h) * m[0] - alpha * big * res
        m.insert(0, new)
        p = min(i + 1, order)
        h, big, r, matrix, b = system(i, p)
        rho = f64(0.5) if p == 2 else torch.linalg.solve(matrix[:-1, :-1], b[:-1]) if p > 2 else []
        res = sum(rho[k] * (m[k + 1] - m[0]) / r[k] for k in range(p - 1))
        base, alpha = x, sde.alpha(times[i + 1])
        x = sde.sigma(times[i + 1]) / sde.sigma(times[i]) * x - alpha * torch.expm1(h) * m[0] - alpha * big * res
    assert torch.allclose(found, x, rtol=1e-8, atol=1e-8)


def test_lms_is_its_integrals():
    """Coefficients of the Lagrange polynomials in sigma/alpha, by quadrature."""
    lam = [-2.0, -1.1, -0.4, 0.5, 0.9]
    s = [math.exp(-v) for v in lam]
    found = LMS().weights(3, 4, lam)
    for j in range(4):
        others = [s[3 - k] for k in range(4) if k != j]
        exact = integral(lambda u, o=others, j=j: mpmath.fprod((u - v) / (s[3 - j] - v) for v in o), s[3], s[4])
        assert found[j] == pytest.approx(exact, rel=1e-9)


def test_pndm_is_its_formulas():
    """Liu et al. 2022, eq. 9, 11, 12: transfers by DDIM, a Runge-Kutta start and the four-term mean."""
    sde = build("vp", "linear")
    model, times, x = Exact(sde, mixture_2d()), UniformT()(sde, 6), normal(0, 6, 2)
    found, ramp = (sample(model, PNDM(s), x, times, no_noise).x for s in ("rk", "ramp"))

    def transfer(x, eps, t, s):
        return sde.alpha(s) / sde.alpha(t) * (x - sde.sigma(t) * eps) + sde.sigma(s) * eps

    start, e = x, []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        if i < 3:
            m = (t + s) / 2
            e1 = model.eps(x, t)
            e2 = model.eps(transfer(x, e1, t, m), m)
            e3 = model.eps(transfer(x, e2, t, m), m)
            e4 = model.eps(transfer(x, e3, t, s), s)
            e, mean = [e1, *e], (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e = [model.eps(x, t), *e]
            mean = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = transfer(x, mean, t, s)
    assert torch.allclose(found, x, rtol=1e-9, atol=1e-9)
    x, e = start, []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        e = [model.eps(x, t), *e]
        c = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]][min(i, 3)]
        x = transfer(x, sum(w * eps for w, eps in zip(c, e[: len(c)], strict=True)), t, s)
    assert torch.allclose(ramp, x, rtol=1e-9, atol=1e-9)


def test_the_last_step_has_the_order_that_is_asked():
    """final=1: DDIM from what the steps before it reached; the steps before are the same."""
    sde = build("vp", "linear")
    model, times, x = Exact(sde, mixture_2d()), UniformLam()(sde, 7), normal(0, 6, 2)
    for sampler in (Deis, DPMpp2M, DPMpp3M, LMS):
        found, seen = sample(model, sampler(final=1), x, times, no_noise).x, []
        sample(model, sampler(), x, times, no_noise, callback=lambda i, x, seen=seen: seen.append(x))
        expected = sample(model, DDIM(), seen[-2], times[-2:], no_noise).x
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(found, seen[-1], rtol=1e-4)


# dx/dlam is not linear in y; pndm's first steps have their middle in t
LAM = {n: s for n, s in ODE.items() if s.clock == "lam" and getattr(s, "variable", None) != "lam" and n != "pndm"}


@over(LAM)
@pytest.mark.parametrize(
    "other", [("ve", "geometric"), ("ve", "edm"), ("flow", "logit"), ("subvp", "linear")], ids="-".join
)
def test_a_walk_is_the_same_on_every_path(sampler, other):
    """At equal lam, y = x/alpha walks the same way: VP = VE = EDM = flow under rescaling.  Karras et al. 2022, app. B.2."""
    vp = build("vp", "linear")
    inner = Exact(vp, mixture_2d())
    sde = SDES[other[0]](SCHEDULES[other[1]]())
    outer = Rescaled(sde, inner)
    ends = torch.stack([torch.tensor(sde.t_max - 1e-3), torch.tensor(max(sde.t_min, 1e-2))]).double()
    lam = torch.linspace(*sde.lam(ends).clamp(-4, 4), 8, dtype=torch.float64)
    x = normal(0, 5, 2)
    ys = []
    for path, model in ((vp, inner), (sde, outer)):
        times = path.time(lam)
        end = sample(model, sampler, path.alpha(times[0]) * math.exp(4) * x, times, no_noise).x
        ys.append(end / path.alpha(times[-1]))
    assert torch.allclose(*ys, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Deis(order=5), "order must lie between 1 and 4"),
        (lambda: Deis(variable="score"), "variable must be one of eps, x0, v"),
        (lambda: Deis(starter="dpm"), "starter must be ramp or rk"),
        (lambda: Deis(final=4), "final must lie between 1 and 3"),
        (lambda: Deis(variable="v", sigma_data=0.0), "sigma_data must be above 0"),
        (lambda: UniPC(order=4), "order must lie between 1 and 3"),
        (lambda: UniPC(variant="bh3"), "variant must be one of bh1, bh2, exact"),
        (lambda: LMS(order=0), "order must lie between 1 and 4"),
        (lambda: Euler(variable="rho"), "variable must be one of t, lam, sigma"),
    ],
)
def test_values_that_do_not_fit(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
