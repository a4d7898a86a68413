"""Classifier guidance."""

from typing import Literal

import torch
from torch import Tensor, nn

from diffcli.diffusion.classifier import Classifier
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.guidance.guided import Guided, is_none
from diffcli.diffusion.guidance.level import level, reach
from diffcli.diffusion.numeric import match, require
from diffcli.diffusion.sde import SDE


class ExactClassifier(nn.Module):
    """The labels' own posterior `p(k | x_t, t)` where they are the components of a mixture: what a `Classifier` learns."""

    def __init__(self, sde: SDE, mixture: GaussianMixture, class_names: list[str]):
        super().__init__()
        self.sde, self.mixture, self.class_names = sde, mixture, list(class_names)
        self.shape = tuple(mixture.means.shape[1:])

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """`log p(k | x_t, t)` (B, K) in nats, float64."""
        return self.mixture.log_posterior(x.flatten(1), self.sde.alpha(t), self.sde.sigma(t))


class ClassifierGuided(Guided):
    """`s(x,t) + gamma grad_x log c(y | x_t, t)`, gamma = scale, of the score that knows no label, or `s(x,t|y)` in its place.

    model: whether the label is passed on to the score.  With exact pieces gamma on the conditional model is 1 + gamma on the
    unconditional one and `ClassifierFree`'s gamma, whose remark on the law of the samples holds here too.
    The classifier may be on any SDE: it is asked at equal lam with `(alpha_u / alpha_t) x`, at its nearest level where it has
    none so clean, and there is no guidance where it has none so noisy.  The gradient goes through the classifier alone.
    label (B,) numbers the `names`, by default the classifier's own; -1 is not guided.  scale, interval: see `Guided`.
    Raises ValueError as it does, for a classifier of clean items or of other names, and for a free field.
    Dhariwal & Nichol 2021, alg. 1, arXiv:2105.05233; Song et al. 2021, sec. 5, arXiv:2011.13456.
    """

    def __init__(
        self,
        inner: Denoiser,
        classifier: Classifier | ExactClassifier,
        scale: float = 1.0,
        interval: list[float] | tuple[float, ...] = (0.0, 1.0),
        model: Literal["conditional", "unconditional"] = "conditional",
        names: list[str] | None = None,
    ):
        super().__init__(inner, scale, interval)
        require(model in ("conditional", "unconditional"), f"model must be conditional or unconditional, got {model}")
        require(
            inner.posterior_mean,
            "guidance=classifier adds to a score, and the model is a free field (cnf, source), which has none",
        )
        require(
            classifier.sde is not None,
            "the classifier knows clean items alone, and guidance asks it at every noise level: task=classifier sde=… trains one",
        )
        names, own = classifier.class_names if names is None else names, classifier.class_names
        require(
            set(names) == set(own),
            f"the classifier tells apart {_some(own)}, the labels are {_some(names)}",
        )
        self.classifier, self.conditional = classifier, model == "conditional"
        self.register_buffer("columns", torch.tensor([own.index(name) for name in names]), persistent=False)
        self.only_until(reach(inner.sde, classifier.sde))
        self.double_backward = True  # its parts differentiate a network, whatever the model's do

    def gradient(self, xt: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """`grad_x log c(y | x_t, t)` (B, *S), 0 where the label is none; differentiable where xt is."""
        outside = torch.is_grad_enabled() and xt.requires_grad
        u, ratio = level(self.sde, self.classifier.sde, t)
        with torch.enable_grad():
            x = xt if outside else xt.detach().requires_grad_()
            log_c = self.classifier.log_prob(match(ratio, x) * x, u)
            chosen = log_c.gather(1, self.columns[label.clamp(min=0)][:, None])[:, 0]
            (found,) = torch.autograd.grad(torch.where(label < 0, 0.0, chosen).sum(), x, create_graph=outside)
        return found

    def parts(self, xt, t, label=None, **cond):
        c_skip, c_out, out = self.inner.evaluate(xt, t, **self._passed(label, cond))
        gamma = self.strength(t)
        if is_none(gamma) or label is None:
            return c_skip, c_out, out
        change = gamma * self.sde.sigma(t) ** 2 / self.sde.alpha(t)
        weight = torch.where(change == 0, 0.0, change / c_out)  # without noise x0_hat is x, and c_out may be 0
        return c_skip, c_out, out + match(weight, out) * self.gradient(xt, t, label)

    def score(self, xt, t, label=None, **cond):
        found, gamma = self.inner.score(xt, t, **self._passed(label, cond)), self.strength(t)
        if is_none(gamma) or label is None:
            return found
        return found + match(gamma, found) * self.gradient(xt, t, label)

    def velocity(self, xt, t, label=None, **cond):
        if is_none(self.strength(t)) or label is None:
            return self.inner.velocity(xt, t, **self._passed(label, cond))
        return super().velocity(xt, t, label=label, **cond)

    def moments(self, xt, t, label=None, **cond):
        x0, eps, v = self.inner.moments(xt, t, **self._passed(label, cond))
        gamma = self.strength(t)
        if is_none(gamma) or label is None:
            return x0, eps, v
        alpha, sigma, gradient = self.sde.alpha(t), self.sde.sigma(t), self.gradient(xt, t, label)
        return (
            x0 + match(gamma * sigma**2 / alpha, x0) * gradient,
            eps - match(gamma * sigma, eps) * gradient,
            v,
        )

    def _passed(self, label: Tensor | None, cond: dict) -> dict[str, Tensor]:
        return cond | {"label": label} if self.conditional and label is not None else cond


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", … ({len(names)})" if len(names) > 6 else "")
