"""EMA against raw weights."""

import torch

from diffcli.diagnosis.errors import held_out
from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, pm, rows, stacked
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series


class Averages(Check):
    """The loss of the averaged weights minus that of the raw ones, on the same noised items, and how far apart they are."""

    name = "ema"
    title = "EMA against raw weights"
    formula = "E‖ε_ema − ε‖²/d − E‖ε_raw − ε‖²/d on the same items and noise;  ‖θ_ema − θ_raw‖/‖θ_raw‖"

    def leave_out(self, subject):
        if subject.other is None:
            return "the model has but one set of weights"
        return no_mean(subject)

    def run(self, subject: Subject) -> Finding:
        found = held_out(subject)
        sign = 1 if subject.names["model"] == "ema" else -1
        difference = sign * (found.loss["model"] - found.loss["other"])
        each = stacked(map(mean_se, difference))
        gap, se = mean_se(difference.mean(0))
        raw = found.loss["other" if sign == 1 else "model"].mean().item()
        ema, own = (subject.denoiser, subject.other)[::sign]
        distance, largest = distances(ema, own)
        status = "good" if gap < 3 * se or gap < 0.002 * raw else "look" if gap < 0.1 * raw else "bad"
        measured = (
            f"EMA minus raw: {pm(gap, se)}, {100 * gap / raw:+.2g} % of the loss; weights {100 * distance:.2g} % apart"
        )
        expected = "0 or below: averaging removes the noise of the last steps"
        meaning = (
            "EMA far below raw: the learning rate was high to the end; EMA above raw: it still remembers worse weights"
        )
        advice = "a smaller ema.decay, or train longer; weights=raw uses the raw weights"
        numbers = {
            "difference": (gap, se),
            "relative": gap / raw,
            "parameters_distance": distance,
            "parameters_most_apart": largest,
            "levels": rows(**found.levels.columns(), ema_minus_raw=each[0], ema_minus_raw_se=each[1]),
        }
        x = (-found.levels.lam).tolist()
        chart = Chart(
            "EMA minus raw, loss", "t, evenly in log-SNR: data left, noise right", "difference of ‖ε_θ − ε‖²/d",
            [Series("EMA − raw", x, *each)], ticks=found.levels.ticks(), level=0.0,
        )  # fmt: skip
        return Finding(status, measured, expected, meaning, "" if status == "good" else advice, numbers, [chart])


def distances(a: torch.nn.Module, b: torch.nn.Module, most: int = 5) -> tuple[float, list[dict]]:
    """`||a - b||/||b||` over all parameters, and the parameters that are relatively furthest apart."""
    found, total, size = [], 0.0, 0.0
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        off, norm = (p - q).double().square().sum().item(), q.double().square().sum().item()
        total, size = total + off, size + norm
        if norm > 0:
            found.append({"name": name, "relative": (off / norm) ** 0.5})
    found.sort(key=lambda row: -row["relative"])
    return (total / size) ** 0.5 if size else 0.0, found[:most]
