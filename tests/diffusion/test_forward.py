"""Forward paths: the marginals of the path, the joint law of the kernel, at any spacing of the times."""

import pytest
import torch
from cases import ALL, build, every_path, f64, generator, normal, paths

from diffcli.diffusion.forward import forward_path

N = 40_000


def drawn(sde, times, x0):
    rng = generator(11)
    return forward_path(sde, x0, times, lambda i: torch.randn(x0.shape, dtype=x0.dtype, generator=rng))


@every_path
def test_marginals_and_covariances(sde):
    """x_t ~ N(alpha_t x0, sigma_t^2); Cov(x_s, x_t) = (alpha_t/alpha_s) sigma_s^2, to five standard errors."""
    times = f64(max(sde.t_min, 1e-3), 0.02, 0.2, 0.21, 0.7, 0.99)
    x0 = torch.full((N,), 0.8, dtype=torch.float64)
    x = drawn(sde, times, x0)
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    z = (x - alpha[:, None] * 0.8) / sigma[:, None]
    assert (z.mean(1).abs() < 5 / N**0.5).all()
    assert (z.var(1) - 1).abs().max() < 5 * (2 / N) ** 0.5
    correlation = z @ z.T / N
    expected = torch.exp(-(sde.lam(times)[:, None] - sde.lam(times)).abs())  # (alpha_t sigma_s)/(alpha_s sigma_t)
    assert (correlation - expected).abs().max() < 5 * (2 / N) ** 0.5


@paths(ALL)
def test_a_path_in_many_steps_is_the_one_in_few_with_the_noises_added_up(sde):
    """Chapman-Kolmogorov along a path: the noise between s and t, through levels in between, has the variance of one step."""
    times = torch.linspace(max(sde.t_min, 0.01), 0.99, 6, dtype=torch.float64)
    x0, weights = f64(1.0), []
    zeros = forward_path(sde, x0, times, lambda i: f64(0.0))[-1]
    for k in range(len(times)):
        weights.append((forward_path(sde, x0, times, lambda i, k=k: f64(float(i == k)))[-1] - zeros).item())
    assert zeros.item() == pytest.approx(sde.alpha(times[-1]).item(), rel=1e-12)
    assert sum(w**2 for w in weights) == pytest.approx(sde.sigma(times[-1]).item() ** 2, rel=1e-11)


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "vp-constant", "subvp-quadratic", "flow-logit", "ou"])
def test_it_may_start_from_the_data_themselves(name):
    """s = 0, where there is no noise: x_0 is x0, and the first step is the whole path to t."""
    sde = build(*name.split("-"))
    times, x0 = f64(0.0, 0.3), normal(0, 4, 3)
    z = normal(1, 4, 3)
    x = forward_path(sde, x0, times, lambda i: z)
    assert torch.equal(x[0], x0)
    assert torch.allclose(x[1], sde.perturb(x0, times[1], z), rtol=1e-13)


@pytest.mark.parametrize("name", ["ve-geometric", "ve-edm", "ve-ncsn"])
def test_ve_starts_from_the_noise_that_it_has_at_zero(name):
    sde = build(*name.split("-"))
    x0, z = normal(0, 4, 3), normal(1, 4, 3)
    x = forward_path(sde, x0, f64(0.0, 0.5), lambda i: z)
    assert torch.allclose(x[0], x0 + sde.schedule.sigma_min * z if name != "ve-ncsn" else x0 + 0.01 * z, rtol=1e-12)


def test_shape_dtype_and_refusal():
    sde, x0 = build("vp", "linear"), normal(0, 5, 3, 4, 4).float()
    x = forward_path(sde, x0, f64(0.1, 0.5, 0.9), lambda i: torch.zeros_like(x0))
    assert x.shape == (3, 5, 3, 4, 4) and x.dtype == torch.float32
    with pytest.raises(ValueError, match="must rise"):
        forward_path(sde, x0, f64(0.5, 0.5), lambda i: x0)
