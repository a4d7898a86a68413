"""Path dependence of the score: whether it is the gradient of anything."""

import torch

from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, pm, ratio_se, rows
from diffcli.diagnosis.jacobians import jacobians, loops
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series


class PathDependence(Check):
    """`||J - J^T|| / ||J + J^T||` of the score's Jacobian, and the score's integral around closed loops."""

    name = "path"
    title = "Path dependence of the score"
    formula = "‖J − Jᵀ‖/‖J + Jᵀ‖ of J = ∂s/∂x, and ∮ s·dx around triangles as wide as the noise, in nats"

    def leave_out(self, subject):
        return no_mean(subject) or ("in one dimension every score is a gradient" if subject.d == 1 else "")

    def run(self, subject: Subject) -> Finding:
        found = jacobians(subject)
        levels = found.levels
        score = [_root(ratio_se(a, b)) for a, b in zip(found.antisymmetric, found.symmetric, strict=True)]
        learned = [_root(ratio_se(a, b)) for a, b in zip(found.antisymmetric, found.learned, strict=True)]
        around = [loops(subject, t, f"loop {k}", subject.few) for k, t in enumerate(levels.t)]
        nats = [_root(mean_se(a.square())) for a, _ in around]
        share = [_root(ratio_se(a.square(), b)) for a, b in around]
        return self._finding(subject, levels, score, learned, nats, share)

    def _finding(self, subject: Subject, levels, score, learned, nats, share) -> Finding:
        worst = max(range(len(score)), key=lambda k: share[k][0])
        value = max(s for s, _ in share)
        status = "good" if value < 0.02 else "look" if value < 0.1 else "bad"
        measured = (
            f"around a loop as wide as the noise the score adds up to {pm(*nats[worst], 2)} nats at t = {levels.t[worst]:.3g}, "
            f"{100 * value:.2g} % of what it is along one side; ‖J − Jᵀ‖/‖J + Jᵀ‖ is at most {max(s for s, _ in score):.2g}"
        )
        meaning = (
            "log p found by integrating this score depends on the way taken by that much; samplers and the ODE's likelihood "
            "do not need a gradient, but a score that is none is no density's"
        )
        columns = dict(score=score, x0_hat=learned, loop_nats=nats, loop_share=share)
        flat = {}
        for name, pairs in columns.items():
            flat |= {name: [v for v, _ in pairs], f"{name}_se": [e for _, e in pairs]}
        numbers = {
            "items": subject.few,
            "probes": "exact" if subject.small else subject.probes,
            "levels": rows(**levels.columns(), **flat),
        }
        x, axis = (-levels.lam).tolist(), dict(ticks=levels.ticks(), log_y=True)
        label = "t, evenly in log-SNR: data left, noise right"
        pairs = {"score": "score", "x0_hat": "x̂₀ (its learned part)"}
        curves = [Series(text, x, flat[name], flat[f"{name}_se"]) for name, text in pairs.items()]
        charts = [
            Chart("Antisymmetric part of the Jacobian", label, "‖J − Jᵀ‖/‖J + Jᵀ‖", curves, **axis),
            Chart(
                "Around a closed loop",
                label,
                "r.m.s. of ∮ s·dx, nats",
                [Series("loop", x, flat["loop_nats"], flat["loop_nats_se"])],
                **axis,
            ),
        ]
        advice = (
            "prediction=energy trains a score that is a gradient by construction; otherwise training makes it smaller"
        )
        return Finding(status, measured, "0: a gradient", meaning, "" if status == "good" else advice, numbers, charts)


def _root(found: tuple[float, float]) -> tuple[float, float]:
    """The square root of a value, with its error."""
    value = max(found[0], 0.0) ** 0.5
    return value, found[1] / (2 * value) if value > 0 else torch.tensor(max(found[1], 0.0)).sqrt().item()
