"""Calibration of x0_hat: it is a posterior mean, and its Jacobian the posterior's covariance."""

import torch
from torch import Tensor

from diffcli.diagnosis.errors import Errors, held_out
from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, pm, ratio_se, rows, stacked
from diffcli.diagnosis.jacobians import jacobians
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series

CLOSE = 0.02  # a slope or a ratio that is 1 for all purposes
SURE = 3.0  # standard errors
NOISIEST = 10.0  # sigma/alpha, beyond which x0_hat is little more than the mean, and the error of eps times sigma/alpha


class Calibration(Check):
    """`E[x0 | x0_hat] = x0_hat`: the regression of x0 on x0_hat has slope 1 and intercept 0, and `E<x0 - x0_hat, x0_hat> = 0`;
    `E||x0 - x0_hat||^2 = E (sigma^2/alpha) tr(dx0_hat/dx)`, the posterior's variance (Tweedie of second order).
    """

    name = "calibration"
    title = "Calibration of x̂₀"
    formula = "regression of x₀ on x̂₀ = E[x₀|x_t]: slope 1, intercept 0;  E‖x₀ − x̂₀‖² = (σ²/α) E tr ∂x̂₀/∂x"

    def leave_out(self, subject):
        return no_mean(subject)

    def run(self, subject: Subject) -> Finding:
        found, turned = held_out(subject), jacobians(subject)
        slope, intercept, leftover = (stacked(column) for column in zip(*regressions(found, subject.d), strict=True))
        scale = subject.sde.sigma(turned.levels.t) ** 2 / subject.sde.alpha(turned.levels.t)
        variance = stacked(ratio_se(a, c * b) for a, b, c in zip(turned.square, turned.trace, scale, strict=True))
        numbers = {
            "items": len(subject.x0),
            "items_variance": subject.few,
            "levels": rows(
                **found.levels.columns(),
                slope=slope[0],
                slope_se=slope[1],
                intercept=intercept[0],
                intercept_se=intercept[1],
                leftover=leftover[0],
                leftover_se=leftover[1],
            ),
            "variance": rows(**turned.levels.columns(), actual_over_predicted=variance[0], se=variance[1]),
        }
        off = _off(found.levels, slope), _off(turned.levels, variance)
        return self._finding(subject, numbers, off, found, turned, slope, variance)

    def _finding(self, subject, numbers, off, found, turned, slope, variance) -> Finding:
        size = max(sure for sure, _ in off)
        status = "good" if size < CLOSE else "look" if size < 0.2 else "bad"
        measured = f"slope {off[0][1]}; actual over predicted variance {off[1][1]}: the furthest from 1 where σ/α ≤ {NOISIEST:g}"
        meaning = (
            "a slope below 1 is an x̂₀ that claims more detail than it knows, above 1 one that blurs; a ratio above 1 is a "
            "model more certain than it is right, which guidance inherits; at high noise "
            "x̂₀ has the error of ε times σ/α, which prediction=v and edm avoid"
        )
        expected = "1 and 1 within the errors, whatever the data"
        advice = (
            "train longer at these levels (loss.time); a large ratio at low noise is overfitting or a rough network"
        )
        label = "t, evenly in log-SNR: data left, noise right"
        x, xv = (-found.levels.lam).tolist(), (-turned.levels.lam).tolist()
        charts = [
            Chart(
                "Slope of x₀ on x̂₀", label, "slope", [Series("slope", x, *slope)],
                ticks=found.levels.ticks(), level=1.0, limits=_limits(*slope),
            ),
            Chart(
                "Squared error over predicted variance", label, "actual/predicted", [Series("ratio", xv, *variance)],
                ticks=turned.levels.ticks(), level=1.0, limits=_limits(*variance),
            ),
        ]  # fmt: skip
        return Finding(status, measured, expected, meaning, "" if status == "good" else advice, numbers, charts)


def _limits(values: list[float], errors: list[float]) -> tuple[float, float]:
    """Of an axis around 1, wide enough for what is known to within a half."""
    sure = [abs(v - 1) + e for v, e in zip(values, errors, strict=True) if e < 0.5]
    reach = min(max([0.05, *sure]), 2.0)
    return 1 - min(reach, 1.0), 1 + reach


def _off(levels, found: tuple[list[float], list[float]]) -> tuple[float, str]:
    """How far the values are surely from 1, beyond three errors, and the level furthest in errors in words."""
    keep = max(1, sum(noise <= NOISIEST for noise in levels.noise))
    values, errors = (torch.tensor(a[:keep], dtype=torch.float64) for a in found)
    away = (values - 1).abs()
    sure = torch.where(errors.isfinite(), away - SURE * errors, 0.0).clamp(min=0).max().item()
    k = int(torch.where(errors > 0, away / errors, 0.0).argmax())
    return sure, f"{pm(values[k].item(), errors[k].item())} at t = {levels.t[k]:.3g}"


def regressions(found: Errors, d: int) -> list[tuple[tuple[float, float], ...]]:
    """Of each level: slope and intercept of x0 on x0_hat over items and dimensions, and `E<x0 - x0_hat, x0_hat>` over
    `E||x0_hat||^2`, each with its standard error; items are independent, the dimensions of one are not.
    """
    return [_regression(*(found.sums[name][k] for name in ("x", "m", "mm", "xm")), d) for k in range(len(found.levels))]


def _regression(x: Tensor, m: Tensor, mm: Tensor, xm: Tensor, d: int) -> tuple[tuple[float, float], ...]:
    mean_x, mean_m = x.mean() / d, m.mean() / d
    s_mm = mm - 2 * mean_m * m + d * mean_m**2
    s_xm = xm - mean_m * x - mean_x * m + d * mean_x * mean_m
    b, b_se = ratio_se(s_xm, s_mm)
    a = (mean_x - b * mean_m).item()
    # what moves the intercept: the mean residual of an item, and through the slope its leverage
    influence = (x - b * m) / d - a - mean_m * (s_xm - b * s_mm) / s_mm.mean()
    return (b, b_se), (a, mean_se(influence)[1]), ratio_se(xm - mm, mm)
