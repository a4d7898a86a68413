"""Densities and corrections of the time samplers."""

import pytest
import torch
from cases import Exact, Recorder, Shifted, build, every_path, f64, generator, mixture_2d
from scipy.stats import kstest, truncnorm

from diffcli.diffusion.loss import DSM
from diffcli.diffusion.sde import OneLevel
from diffcli.diffusion.time_sampling import Importance, Levels, LogNormal, Uniform, time_samplers, training_levels
from diffcli.randomness import Draw

N = 20_000


def separate(sampler, sde, n=1000):
    """Independent times: one of each batch, by turns of each position."""
    return torch.stack([sampler(sde, 3, Draw(0, i))[0][i % 3] for i in range(n)])


@every_path
def test_importance_has_the_expectation_of_uniform(sde):
    """E_q[h/q] = E[h], of any h; both are stratified, so their errors are those of quadratures."""
    t, weight = Importance()(sde, 4000, Draw(0, 0))
    even, one = Uniform()(sde, 4000, Draw(0, 0))
    assert torch.equal(one, torch.ones_like(one))
    for h in (torch.ones_like, torch.cos, lambda t: t**2, sde.sigma, lambda t: torch.tanh(sde.lam(t))):
        scale = h(even).abs().mean()
        assert abs((weight * h(t)).mean() - h(even).mean()) < 3e-3 * scale


@every_path
def test_importance_is_uniform_in_lam(sde):
    """Its times are those of equal steps in lam, and its density is g^2/sigma^2 but for a constant."""
    t, weight = Importance()(sde, 1000, Draw(0, 0))
    gaps = -sde.lam(t.sort().values).diff()
    span = (sde.lam(f64(sde.t_min)) - sde.lam(f64(sde.t_max))).item()
    assert torch.allclose(gaps, torch.full_like(gaps, span / 1000), rtol=1e-4)
    product = weight * sde.g2(t) / sde.sigma(t) ** 2  # what the likelihood-weighted loss puts on the noise bracket
    assert torch.allclose(product, torch.full_like(product, 2 * span / (sde.t_max - sde.t_min)), rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (9.0, 1.0), (-12.0, 1.0), (0.0, 100.0)])
@pytest.mark.parametrize("sde", [build("vp", "linear"), build("ve", "geometric")], ids=["vp", "ve"])
def test_lognormal_has_its_density(sde, mean, std):
    """log(sigma/alpha) is the truncated normal, in its tails too, and 1/q is not applied."""
    sampler = LogNormal(mean, std)
    sampler.setup(sde)
    low, high = (-sde.lam(f64(t)).item() for t in (sde.t_min, sde.t_max))
    law = truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    t, weight = sampler(sde, 999, Draw(0, 0))
    found = (-sde.lam(t)).sort().values
    assert found.min() >= low - 1e-9 and found.max() <= high + 1e-9
    assert torch.equal(weight, torch.ones_like(t))
    # stratified: the k-th smallest lies in the k-th of 999 slices of equal probability
    slices = torch.as_tensor(law.cdf(found.numpy())) * 999
    assert (slices - (torch.arange(999) + 0.5)).abs().max() < 0.51
    assert kstest(-sde.lam(separate(sampler, sde)).numpy(), law.cdf).pvalue > 1e-3


def test_levels_are_drawn_equally_often():
    """Of the SDE's own, or of i/T t_max; an expectation is the plain average over them."""
    sde = build("vp", "linear")
    sde.times = f64(0.1, 0.15, 0.4, 0.9)
    t, weight = Levels()(sde, 12, Draw(0, 0))
    assert torch.equal(t.sort().values, sde.times.repeat_interleave(3)) and torch.equal(weight, torch.ones(12).double())
    found = separate(Levels(), sde, 4000)
    counts = (found[:, None] == sde.times).sum(0)
    assert counts.sum() == 4000 and (counts - 1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5
    assert torch.cos(found).mean().item() == pytest.approx(torch.cos(sde.times).mean().item(), abs=0.02)


def test_levels_of_a_continuous_path():
    vp, cosine, late = build("vp", "linear"), build("vp", "cosine"), build("vp", "linear", t_min=0.26)
    assert torch.allclose(training_levels(vp, 1000), torch.arange(1, 1001).double() / 1000, rtol=1e-15)
    assert training_levels(cosine, 50)[-1] == cosine.t_max
    assert torch.equal(training_levels(late, 4), f64(0.5, 0.75, 1.0))
    t = Levels(8)(vp, 64, Draw(0, 0))[0]
    assert torch.equal(t.sort().values, training_levels(vp, 8).repeat_interleave(8))


@pytest.mark.parametrize("name", time_samplers())
@every_path
def test_times_lie_in_the_range_and_are_stratified(sde, name):
    """Sorted by their uniform number they grow, so that n times fall in n slices of equal probability."""
    sampler = time_samplers()[name]
    sampler.setup(sde)
    for n in (1, 7, 64):
        t, weight = sampler(sde, n, Draw(1, n))
        assert t.shape == weight.shape == (n,) and t.dtype == weight.dtype == torch.float64
        assert t.min() >= sde.t_min and t.max() <= sde.t_max and (weight > 0).all()
    ranks = torch.cat([sampler(sde, 4, Draw(1, 7, rank, world=3))[0] for rank in range(3)])
    together = sampler(sde, 12, Draw(1, 7))[0]  # theirs are those of one process that has the whole batch
    assert torch.allclose(ranks.sort().values, together.sort().values, rtol=1e-12)
    u = torch.linspace(0, 1, 200, dtype=torch.float64)[:-1]
    assert (sampler.place(sde, u)[0].diff() >= (0 if name == "levels" else 1e-15)).all()


@pytest.mark.parametrize(
    "sde",
    [build("vp", "linear"), build("vp", "cosine"), build("subvp", "linear")],
    ids=["vp", "cosine", "subvp"],
)
def test_importance_lowers_the_variance_of_the_likelihood_loss(sde):
    """The same mean with a fraction of the variance, for a score that is slightly wrong."""
    x0 = mixture_2d().sample(N, generator(0))[0]
    losses = [
        DSM("likelihood", name)(Recorder(Shifted(sde, mixture_2d(), 0.05)), x0, Draw(0, 0))
        for name in ("uniform", "importance")
    ]
    error = sum(a.var() / N for a in losses).sqrt()
    assert abs(losses[0].mean() - losses[1].mean()) < 4 * error
    assert losses[1].var() < 0.2 * losses[0].var()


def test_bad_settings_are_refused():
    vp, one = build("vp", "linear"), OneLevel()
    for make in (lambda: Levels(0), lambda: LogNormal(p_std=0)):
        with pytest.raises(ValueError, match="must be"):
            make()
    with pytest.raises(ValueError, match="leave no noise level"):
        LogNormal(100.0, 1.0).setup(vp)
    for sampler in (LogNormal(), Importance()):
        with pytest.raises(ValueError, match="more than one noise level"):
            sampler.setup(one)
    for sampler in (Uniform(), Levels()):
        sampler.setup(one)
        assert Exact(one, mixture_2d()).sde is one and sampler(one, 3, Draw(0, 0))[0].shape == (3,)
