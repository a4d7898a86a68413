"""Encode and decode: held-out items to noise and back by the PF-ODE, which is one to one."""

import math

import torch
from torch import Tensor

from diffcli.diagnosis.finding import Check, Finding, mean_se, no_process, pm
from diffcli.diagnosis.levels import LEAST_LAM
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series
from diffcli.diffusion.ode import FixedStep
from diffcli.errors import NumericalError

MOST_ITEMS = 64, 16  # of those whose Jacobians are taken whole, and are not
METHODS = {"heun": (2, (16, 32, 64)), "rk4": (4, (8, 16, 32))}  # order, steps: the same evaluations for both


class RoundTrip(Check):
    """`||x - decode(encode(x))|| / std(x)` at a few step counts: it falls as steps^-order where the field is smooth."""

    name = "round_trip"
    title = "Encode and decode along the PF-ODE"
    formula = "r.m.s. of x − decode(encode(x)) over the data's standard deviation, both ways with the same steps"

    def leave_out(self, subject):
        return no_process(subject)

    def run(self, subject: Subject) -> Finding:
        sde, x0 = subject.sde, subject.x0[: _items(subject)].double()
        start = torch.tensor(max(sde.t_min, sde.t_stop), dtype=torch.float64)
        x = sde.perturb(x0, start, subject.normal(x0.shape, "round trip"))
        ends = sde.lam(torch.tensor([start.item(), sde.t_max], dtype=torch.float64)).clamp(min=LEAST_LAM).tolist()
        table = []
        for name, (order, counts) in METHODS.items():
            for steps in counts:
                error = self._errors(subject, x, FixedStep(name, steps), ends)
                value, se = mean_se(error.square()) if error is not None else (math.nan, math.nan)
                root = value**0.5
                table.append(
                    dict(
                        method=name,
                        order=order,
                        steps=steps,
                        nfe=2 * steps * order,
                        error=root,
                        error_se=se / (2 * root) if root else 0.0,
                    )
                )
        return self._finding(subject, table)

    @torch.no_grad()
    def _errors(self, subject: Subject, x: Tensor, ode: FixedStep, ends: list[float]) -> Tensor | None:
        """Of each item (n,), relative; None where the solver met a non-finite value."""

        def fn(y, lam):
            return (
                subject.denoiser.velocity_lam(y[0], subject.sde.time(lam).clamp(subject.sde.t_min, subject.sde.t_max)),
            )

        found = []
        for part in subject.batches(len(x)):
            begun = (subject.to(x[part]),)
            try:
                there, _ = ode.solve(fn, begun, *ends)
                back, _ = ode.solve(fn, there, *reversed(ends))
            except NumericalError:
                return None
            found.append((back[0] - begun[0]).double().flatten(1).square().mean(1).cpu())
        return (torch.cat(found) / x.var(correction=0)).sqrt()

    def _finding(self, subject: Subject, table: list[dict]) -> Finding:
        best = {name: [row for row in table if row["method"] == name] for name in METHODS}
        last, slopes = {name: rows[-1] for name, rows in best.items()}, {}
        for name, rows in best.items():
            a, b = rows[-2]["error"], rows[-1]["error"]
            slopes[name] = math.log2(a / b) if a > 0 and b > 0 else math.nan
        low = min((row["error"] for row in table if row["error"] == row["error"]), default=math.nan)
        status = "good" if low < 0.01 else "look" if low < 0.1 else "bad"
        measured = "; ".join(
            f"{name} of {row['steps']} steps: {pm(row['error'], row['error_se'], 2)}, falling as steps^-{slopes[name]:.1f} "
            f"(order {row['order']})"
            for name, row in last.items()
        )
        meaning = (
            "what is left is the solver's: a field that is smooth gives its order and soon float's last digits, a rough one "
            "(overfitted, or nearly singular at low noise) a slow fall; editing and interpolation in noise need this to be small"
        )
        advice = "more steps, or an adaptive solver (sampler=rk45); a fall that stalls early points to a rough network"
        lines = [
            Series(
                name, [row["nfe"] for row in rows], [row["error"] for row in rows], [row["error_se"] for row in rows]
            )
            for name, rows in best.items()
        ]
        chart = Chart(
            "Error of the round trip", "evaluations, there and back", "relative error", lines, log_x=True, log_y=True
        )
        chart.ticks = [(row["nfe"], f"{row['nfe']}") for row in best["heun"]]
        numbers = {"items": _items(subject), "observed_order": slopes, "runs": table}
        return Finding(
            status,
            measured,
            "0 as steps grow, as steps^-order",
            meaning,
            "" if status == "good" else advice,
            numbers,
            [chart],
        )


def _items(subject: Subject) -> int:
    return min(subject.few, MOST_ITEMS[not subject.small])
