"""Score error against log p_t: what the model knows where data are rare."""

import math

import torch
from torch import Tensor

from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, stacked
from diffcli.diagnosis.levels import Levels
from diffcli.diagnosis.subject import MOST, Subject
from diffcli.diagnosis.svg import Chart, Series

BINS, WIDEST = 8, 4.0  # of each level; most that the noise of a point off the data is inflated by


class Regions(Check):
    """`sigma^2 ||s_theta - s||^2/d` in bins of log p_t: half the points are noised items, half have up to 4 times the noise."""

    name = "regions"
    title = "Score error in low-density regions"
    formula = "σ²‖s_θ(x) − ∇log p_t(x)‖²/d for x = α x₀ + κσ ε, κ from 1 to 4, in bins of log p_t(x)"

    def leave_out(self, subject):
        return no_mean(subject)

    @torch.no_grad()
    def run(self, subject: Subject) -> Finding:
        truth = subject.truth if subject.truth is not None else subject.training_kde
        levels = Levels(subject.sde, 3)
        series, table, worst = [], [], []
        for k, t in enumerate(levels.t):
            log_p, error, loss = _points(subject, truth, k, t)
            found = _binned(log_p, error, loss)
            series.append(
                Series(
                    f"t = {t:.2g}, σ/α = {levels.noise[k]:.2g}",
                    [b["log_p"] for b in found],
                    *stacked(b["error"] for b in found),
                )
            )
            table += [dict(t=t.item(), noise=levels.noise[k], **_flat(b)) for b in found]
            worst.append((found[0]["error"], found[-1]["error"]))
        return self._finding(subject, table, series, worst)

    def _finding(self, subject: Subject, table, series, worst) -> Finding:
        known = subject.truth is not None
        rare, dense = (torch.tensor([w[i][0] for w in worst]).max().item() for i in (0, 1))
        ratio = rare / dense if dense > 0 else 1.0
        measured = f"relative to the noise the squared error is {rare:.3g} where density is lowest, {dense:.3g} where it is highest"
        if known:
            status = "good" if rare < 0.05 else "look" if rare < 0.5 else "bad"
            expected = "0 everywhere; a trained model is worse where it has seen few points"
            advice = (
                "samplers start in such places and cross them between modes: more training at these levels, a corrector "
                "(sampler=pc), or more noise at t_max"
            )
        else:
            status = "measured"
            measured = f"measured against the score of {len(subject.train[:MOST])} training items: {measured}"
            expected = "not 0: that score is the one of a model that knows these items by heart and nothing else"
            advice = ""
        meaning = "trained on noised items alone, a score is not held to anything where they do not come"
        charts = [
            Chart(
                "Score error and density",
                "log p_t − its mean over noised items, nats a dimension",
                "σ²‖s_θ − s‖²/d",
                series,
                log_y=True,
            )
        ]
        numbers = {"density": "exact" if known else f"kde of {len(subject.train[:MOST])} training items"}
        numbers |= {"lowest_bin": rare, "highest_bin": dense, "ratio": ratio, "bins": table}
        return Finding(
            status, measured, expected, meaning, "" if status in ("good", "measured") else advice, numbers, charts
        )


def _points(subject: Subject, truth, k: int, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each point: log p_t above the mean of noised items in nats a dimension, squared score error, and denoising loss."""
    x0, n, sde = subject.x0, len(subject.x0), subject.sde
    eps = subject.normal(x0.shape, "regions", k)
    u = torch.rand(n, dtype=torch.float64, generator=subject.generator("regions", "width", k))
    wide = torch.exp(math.log(WIDEST) * u)
    wide[torch.arange(n) % 2 == 0] = 1.0
    log_p, error, loss = (torch.empty(n, dtype=torch.float64) for _ in range(3))
    for part in subject.batches(n):
        noise = wide[part].view(-1, *[1] * (x0.ndim - 1)) * eps[part]
        xt = subject.to(sde.perturb(x0[part].double(), t, noise))
        times = t.expand(len(xt))
        found, wanted = subject.denoiser.eps(xt, times).double(), truth.eps(xt, times).double()
        error[part] = (found - wanted).flatten(1).square().mean(1).cpu()
        loss[part] = (found.cpu() - noise).flatten(1).square().mean(1)
        log_p[part] = truth.log_prob(xt, t).cpu() / subject.d
    own = wide == 1
    return log_p - log_p[own].mean(), error, loss


def _binned(log_p: Tensor, error: Tensor, loss: Tensor) -> list[dict]:
    """Bins of equal count, the lowest density first."""
    order = log_p.argsort()
    parts = [p for p in order.chunk(min(BINS, max(1, len(order) // 4))) if len(p)]
    return [dict(log_p=log_p[p].mean().item(), error=mean_se(error[p]), loss=mean_se(loss[p]), n=len(p)) for p in parts]


def _flat(found: dict) -> dict:
    (error, error_se), (loss, loss_se) = found["error"], found["loss"]
    return dict(log_p=found["log_p"], error=error, error_se=error_se, loss=loss, loss_se=loss_se, n=found["n"])
