"""Loss against t on held-out data, and what of it a better model could still take away."""

import math

import torch
from torch import Tensor

from diffcli.diagnosis.errors import Errors, held_out, training
from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, pm, rows, stacked
from diffcli.diagnosis.subject import MOST, Subject
from diffcli.diagnosis.svg import Chart, Series
from diffcli.diffusion.prior import moments

LINEAR_UP_TO = 4096  # dimensions whose covariance is diagonalised
TOO_MUCH = 1e-3  # above a linear denoiser: a thousandth of a nat a dimension and unit of lam
SMALL, LARGE = 0.01, 0.05  # of a mean square of 1: what the noise estimate may be off by


def linear_loss(items: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The least `E||eps_hat - eps||^2/d` of a linear denoiser at each (alpha, sigma) (K,), `(1/d) sum_k a^2 v_k/(a^2 v_k + s^2)`
    with v the eigenvalues of the items' covariance.  Wiener 1949.
    """
    variances = torch.linalg.eigvalsh(moments(items)[1]).clamp(min=0)
    signal = alpha[:, None] ** 2 * variances
    return (signal / (signal + sigma[:, None] ** 2)).mean(1)


class Loss(Check):
    """`E||eps_theta - eps||^2/d` at each level, with its floor; the difference is the Fisher divergence times sigma^2/d."""

    name = "loss"
    title = "Loss against t, and its irreducible part"
    formula = "E‖ε_θ − ε‖²/d − E‖ε* − ε‖²/d = σ² E‖s_θ − ∇log p_t‖²/d  (the Fisher divergence in units of the noise)"

    def leave_out(self, subject):
        return no_mean(subject)

    def run(self, subject: Subject) -> Finding:
        found, seen = held_out(subject), training(subject)
        curves = {name: stacked(map(mean_se, found.loss[key])) for key, name in subject.names.items()}
        curves["floor"] = stacked(map(mean_se, found.loss["floor"]))
        curves["train"] = stacked(map(mean_se, seen.loss["model"]))
        fisher = {name: stacked(map(mean_se, found.to_floor[key])) for key, name in subject.names.items()}
        linear = _linear(subject, found)
        numbers = self._numbers(subject, found, seen, curves, fisher, linear)
        verdict = (_against_truth if subject.truth is not None else _between_bounds)(subject, numbers)
        verdict = _worse_than_linear(subject, numbers) or _overfitted(numbers, verdict) or verdict
        return Finding(*verdict, numbers, _charts(subject, found, curves, fisher, linear))

    def _numbers(self, subject, found: Errors, seen: Errors, curves, fisher, linear) -> dict:
        columns = found.levels.columns()
        for name, (values, errors) in curves.items():
            columns |= {f"loss_{name}": values, f"loss_{name}_se": errors}
        for name, (values, errors) in fisher.items():
            columns |= {f"fisher_{name}": values, f"fisher_{name}_se": errors}
        difference = stacked(map(mean_se, found.loss["model"] - found.loss["floor"]))
        columns |= {"loss_minus_floor": difference[0], "loss_minus_floor_se": difference[1]}
        columns |= {"loss_linear": linear} if linear else {}
        own, train = (e.loss["model"].mean(0) for e in (found, seen))
        kl = subject.d * (found.levels.width[:, None] * found.to_floor["model"]).sum(0)
        gap = own.mean().item() - train.mean().item()
        return {
            "floor": "exact"
            if subject.truth is not None
            else f"ideal denoiser of the {len(subject.x0)} items measured on",
            "loss_mean": mean_se(own),
            "train_loss_mean": mean_se(train),
            "held_out_minus_train": (gap, math.hypot(mean_se(own)[1], mean_se(train)[1])),
            "fisher_mean": mean_se(found.to_floor["model"].mean(0)),
            "fisher_integral_nats": mean_se(kl),
            "levels": rows(**columns),
        }


def _linear(subject: Subject, found: Errors) -> list[float] | None:
    if subject.d > LINEAR_UP_TO or len(subject.train) < 2:
        return None
    alpha, sigma = subject.sde.alpha(found.t.flatten()), subject.sde.sigma(found.t.flatten())
    return linear_loss(subject.train[:MOST], alpha, sigma).view_as(found.t).mean(1).tolist()


def _against_truth(subject: Subject, numbers: dict) -> tuple[str, ...]:
    mean, error = numbers["fisher_mean"]
    status = "good" if mean < SMALL else "look" if mean < LARGE else "bad"
    name = subject.names["model"]
    worst = max(numbers["levels"], key=lambda row: row[f"fisher_{name}"])
    measured = f"{pm(mean, error)} above the exact denoiser's loss: the noise estimate is {100 * max(mean, 0) ** 0.5:.3g} % off"
    if subject.sde.is_process:
        measured += f"; over all noise levels {pm(*numbers['fisher_integral_nats'])} nats an item"
    expected = "0: no model has less loss than the exact denoiser"
    meaning = "the nats are, but for the prior, an upper bound of KL(data ‖ reverse SDE of the model)"
    advice = f"most is lost at t = {worst['t']:.3g}: train longer or larger, or draw these times more often (loss.time)"
    return status, measured, expected, meaning, "" if status == "good" else advice


def _between_bounds(subject: Subject, numbers: dict) -> tuple[str, ...]:
    gap, d = numbers["held_out_minus_train"], subject.d
    measured = (
        f"mean loss {pm(*numbers['loss_mean'])} over the levels; held out minus as many training items: {pm(*gap)}"
    )
    expected = (
        "between the floor of these very items, which a model that has not seen them cannot reach, and the best linear "
        "denoiser; no more than on training items"
    )
    kl, error = numbers["fisher_integral_nats"]
    meaning = "the exact score of these data is not known, so what lies above this floor is an upper limit of the Fisher divergence"
    if subject.sde.is_process:
        meaning += f": {pm(kl / d, error / d)} nats a dimension over all noise levels"
    return "measured", measured, expected, meaning, ""


def _worse_than_linear(subject: Subject, numbers: dict) -> tuple[str, ...] | None:
    name = subject.names["model"]
    over = [
        row
        for row in numbers["levels"]
        if row[f"loss_{name}"] - 3 * row[f"loss_{name}_se"] > row.get("loss_linear", math.inf) + TOO_MUCH
    ]
    if not over:
        return None
    worst = max(over, key=lambda row: row[f"loss_{name}"] / row["loss_linear"])
    return (
        "bad",
        f"at t = {worst['t']:.3g} the loss is {worst[f'loss_{name}']:.3g}, and a linear denoiser has {worst['loss_linear']:.3g}",
        "less than the best linear denoiser at every level",
        "at such levels the model has learned less than the mean and covariance of the data say",
        "train longer, or draw these times more often (loss.time, loss.weight)",
    )


def _overfitted(numbers: dict, verdict: tuple[str, ...]) -> tuple[str, ...] | None:
    gap, error = numbers["held_out_minus_train"]
    if gap < 3 * error or gap < 0.05 * numbers["train_loss_mean"][0]:
        return None
    _, measured, expected, *_ = verdict
    return (
        "look",
        measured + f" (held out minus train: {pm(gap, error)})" * ("held out minus" not in measured),
        expected,
        "the model fits the items it was trained on better than others: part of what it knows is those items",
        "stop earlier (checkpoints/best.ckpt), more data, network.dropout, or a smaller network",
    )


def _charts(subject: Subject, found: Errors, curves, fisher, linear) -> list[Chart]:
    x, ticks = (-found.levels.lam).tolist(), found.levels.ticks()
    names = {name: f"held out, {name}" if name in subject.names.values() else name for name in curves}
    names |= {"train": f"train, {subject.names['model']}"}
    names |= {"floor": "floor: " + ("exact" if subject.truth is not None else "ideal for these items")}
    lines = [Series(names[name], x, *curve) for name, curve in curves.items()]
    if linear:
        lines.append(Series("best linear denoiser", x, linear, dashed=True))
    axis = dict(x_label="t, evenly in log-SNR: data left, noise right", ticks=ticks)
    what = "above the exact denoiser" if subject.truth is not None else "above the floor of these items (upper limit)"
    excess = [Series(name, x, *curve) for name, curve in fisher.items()]
    return [
        Chart("Loss", y_label="‖ε_θ − ε‖²/d", series=lines, log_y=True, **axis),
        Chart(f"Loss {what}", y_label="σ²‖s_θ − s‖²/d", series=excess, log_y=True, **axis),
    ]
