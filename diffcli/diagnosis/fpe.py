"""The score Fokker-Planck equation: whether the scores at neighbouring times are those of one process."""

import torch

from diffcli.diagnosis.finding import Check, Finding, no_mean, no_process, pm, ratio_se, rows
from diffcli.diagnosis.probes import score_fpe_terms, square_of_mean
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series


class FokkerPlanck(Check):
    """`||residual||^2` over the sum of its terms' squares, at noised items: 0 for the scores of a density that is noised."""

    name = "fpe"
    title = "Score Fokker–Planck residual"
    formula = "∂s/∂t − ∇(½g² div s + ½g²‖s‖² − f x·s − d f),  root of its mean square over that of its terms"

    def leave_out(self, subject):
        if subject.small or subject.probes > 1:
            return no_process(subject) or no_mean(subject)
        return "one probe cannot tell the residual from its own noise (probes=2 or more)"

    def run(self, subject: Subject) -> Finding:
        levels, n, sde = subject.few_levels, subject.few, subject.sde
        found = []
        for k, t in enumerate(levels.t):
            eps, probes = subject.normal(subject.x0[:n].shape, "fpe", k), subject.directions(n, "fpe", "probes", k)
            above, below = [], []
            for part in subject.batches(n, True):
                xt = subject.to(sde.perturb(subject.x0[part].double(), t, eps[part]))
                left, others, spread = score_fpe_terms(subject.denoiser.score, sde, xt, t, subject.to(probes[:, part]))
                above.append(square_of_mean((left - others[0] - others[1])[None] - spread, subject.small))
                squares = [a.double().flatten(1).square().sum(1) for a in (left, *others)]
                below.append(sum(squares) + square_of_mean(spread, subject.small))
            found.append(ratio_se(torch.cat(above).cpu(), torch.cat(below).cpu()))
        return self._finding(subject, levels, found)

    def _finding(self, subject: Subject, levels, found) -> Finding:
        relative = [max(r, 0.0) ** 0.5 for r, _ in found]
        # of a square root; where the square itself is not told from 0, that of the square
        errors = [
            e / (2 * root) if root**2 > e else max(e, 0.0) ** 0.5 for root, (_, e) in zip(relative, found, strict=True)
        ]
        middle = torch.tensor(relative).median().item()
        worst = max(range(len(relative)), key=relative.__getitem__)
        status = "good" if middle < 0.1 else "look"
        how = "whole Jacobians" if subject.small else f"{subject.probes} random probes an item"
        measured = f"{middle:.2g} at the middle level, {pm(relative[worst], errors[worst], 2)} at t = {levels.t[worst]:.3g}; {how}"
        expected = "0: at each time the score must flow out of that at the next; 1 is a score whose times have nothing in common"
        meaning = (
            "no one density has scores with a residual, so that reverse SDE, PF-ODE and likelihood disagree; near 1 with a small "
            "loss it is a network that wiggles in t, faster than any sampler steps"
        )
        advice = "a smoother embedding of t (network.embedding, network.fourier_scale), EMA, longer training"
        if subject.sde.times is not None:
            meaning += "; trained at single levels, the model was never held to anything in between"
        numbers = {
            "items": subject.few,
            "probes": "exact" if subject.small else subject.probes,
            "median": middle,
            "levels": rows(
                **levels.columns(),
                squared=[r for r, _ in found],
                squared_se=[e for _, e in found],
                relative=relative,
                relative_se=errors,
            ),
        }
        x = (-levels.lam).tolist()
        chart = Chart(
            "Residual of the score Fokker–Planck equation",
            "t, evenly in log-SNR: data left, noise right",
            "relative residual",
            [Series("residual", x, relative, errors)],
            ticks=levels.ticks(),
            log_y=True,
        )
        return Finding(status, measured, expected, meaning, "" if status == "good" else advice, numbers, [chart])
