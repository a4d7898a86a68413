"""Guidance by labels: with the exact pieces of a mixture every guided score is known at every (x, t).

The laws here are of scores.  Samples of a guided score do NOT follow `p(x|y) p(y|x)^gamma`: noised to t, that law is not
`p_t(x|y) p_t(y|x)^gamma`, so the guided scores are those of no one process; `test_samples_do_not_follow_the_tilted_law`
measures by how much.
"""

import pytest
import torch
from cases import Fixed, build, every_path, f64, mixture_2d, noised, normal, rotated, short_paths, times_of
from sampler_cases import SAMPLERS
from torch import nn

from diffcli.diffusion.denoiser import evaluations
from diffcli.diffusion.classifier import Classifier
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
from diffcli.diffusion.prediction import X0, Eps, Score, V, Velocity
from diffcli.diffusion.samplers import DDIM, RK45, Ancestral, sample
from diffcli.diffusion.schedule import Geometric, Linear
from diffcli.diffusion.sde import VE, VP
from diffcli.randomness import ItemNoise

GAMMAS = (-1.0, -0.4, 0.0, 0.7, 3.0, 10.0)
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
@pytest.mark.parametrize("gamma", GAMMAS)
def test_with_exact_pieces_every_guidance_is_the_known_score(sde, gamma):
    """cfg(gamma) = classifier(gamma) on the conditional = classifier(1 + gamma) on the unconditional model."""
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
