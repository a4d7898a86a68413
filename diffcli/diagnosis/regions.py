"""Score error against log p_t: what the model knows where data are rare."""

import math

import torch
from torch import Tensor

from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, pm
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
        known = subject.truth is not None
        truth, levels = subject.truth if known else subject.training_kde, Levels(subject.sde, 3)
        errors, losses = [], []
        for k, t in enumerate(levels.t):
            log_p, error, loss, own = _points(subject, truth, k, t)
            place = dict(t=t.item(), noise=levels.noise[k])
            errors.append([place | row for row in _binned(log_p, error)])
            losses.append([place | row for row in _binned(log_p[own], loss[own])])
        verdict = _known(errors) if known else _unknown(subject, losses)
        density = "exact" if known else f"kde of {len(subject.train[:MOST])} training items"
        numbers = {"density": density, "score_error": [row for bins in errors for row in bins]}
        numbers["loss_of_noised_items"] = [row for bins in losses for row in bins]
        against = "the exact score" if known else "the ideal denoiser of the training items"
        charts = [_chart(f"Score error, against {against}", "σ²‖s_θ − s‖²/d", errors, known)]
        if not known:
            charts.insert(0, _chart("Loss of noised items", "‖ε_θ − ε‖²/d", losses, known))
        return Finding(*verdict, numbers, charts)


def _chart(title: str, label: str, levels: list[list[dict]], nats: bool) -> Chart:
    series = [
        Series(
            f"t = {bins[0]['t']:.2g}, σ/α = {bins[0]['noise']:.2g}",
            [row["log_p"] if nats else (i + 0.5) / len(bins) for i, row in enumerate(bins)],
            [row["value"] for row in bins],
            [row["se"] for row in bins],
        )
        for bins in levels
    ]
    x_label = "log p_t less its mean, nats a dimension" if nats else "share of points of lower log p_t"
    return Chart(title, x_label, label, series, log_y=True)


def _known(levels: list[list[dict]]) -> tuple[str, ...]:
    bins = max(levels, key=lambda bins: bins[0]["value"])
    rare, dense = bins[0]["value"], bins[-1]["value"]
    status = "good" if rare < 0.05 else "look" if rare < 0.5 else "bad"
    measured = (
        f"at t = {bins[0]['t']:.3g} the squared error is {pm(rare, bins[0]['se'], 2)} where density is lowest and "
        f"{pm(dense, bins[-1]['se'], 2)} where it is highest, the noise's own square being 1"
    )
    advice = "more training at these levels (loss.time), a corrector (sampler=pc), or more noise at t_max"
    return (
        status,
        measured,
        "0 everywhere; a trained model is worse where it has seen few points",
        "nothing holds a score where noised items do not come; samplers start in such places and cross them between modes",
        "" if status == "good" else advice,
    )


def _unknown(subject: Subject, levels: list[list[dict]]) -> tuple[str, ...]:
    bins = max(levels, key=lambda bins: bins[0]["value"] / bins[-1]["value"])
    rare, dense = (pm(bins[i]["value"], bins[i]["se"], 2) for i in (0, -1))
    return (
        "measured",
        f"at t = {bins[0]['t']:.3g} noised items far from the training items have a loss of {rare}, those near to them {dense}",
        "no more than the data are harder there",
        f"no density is known: log p_t is that of {len(subject.train[:MOST])} noised training items, whose own score is the one of "
        "a model that knows these by heart; a trained one should be far from it at low noise, near at high noise",
        "",
    )


def _points(subject: Subject, truth, k: int, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each point: log p_t above the mean of noised items in nats a dimension, squared score error, denoising loss, and
    whether it is a noised item.
    """
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
    return log_p - log_p[own].mean(), error, loss, own


def _binned(log_p: Tensor, values: Tensor) -> list[dict]:
    """Bins of equal count, the lowest density first."""
    found = []
    for part in log_p.argsort().chunk(min(BINS, max(1, len(log_p) // 4))):
        value, se = mean_se(values[part])
        found.append(dict(log_p=log_p[part].mean().item(), value=value, se=se, n=len(part)))
    return found
