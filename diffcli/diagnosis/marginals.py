"""Forward SDE, reverse SDE and PF-ODE: whether the three have the same marginals."""

import torch
from torch import Tensor

from diffcli.diagnosis.finding import Check, Finding, no_process, rows
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import DPM2, DPMpp2MSDE, sample
from diffcli.errors import DiffcliError
from diffcli.metrics.ruler import Ruler
from diffcli.metrics.two_sample import sliced_wasserstein
from diffcli.randomness import ItemNoise

STEPS = {"reverse SDE": 48, "PF-ODE": 24}  # of second-order samplers, uniform in lam
PLACES = (0.25, 0.5, 0.75, 1.0)  # of the way from noise to data, in lam


class Marginals(Check):
    """Sliced Wasserstein distance of the reverse SDE's and the PF-ODE's states to noised held-out items, at a few t."""

    name = "marginals"
    title = "Forward, reverse SDE and PF-ODE marginals"
    formula = "sliced W₂ between x_t of each and noised held-out items, beside that of two halves of those items"

    def leave_out(self, subject):
        if len(subject.held_out) < 4:
            return "it takes at least 4 held-out items to have two halves of them"
        return no_process(subject)

    def run(self, subject: Subject) -> Finding:
        free = not subject.denoiser.posterior_mean
        samplers = {"reverse SDE": DPMpp2MSDE(), "PF-ODE": DPM2()}
        if free:
            del samplers["reverse SDE"]
        n = min(max(2, len(subject.held_out) // 2), min(subject.n, 1000) if subject.small else max(2, subject.n // 2))
        try:
            states = {name: walk(subject, sampler, STEPS[name], n) for name, sampler in samplers.items()}
        except (DiffcliError, ValueError) as error:
            return Finding("left out", f"a sampler could not walk: {error}")
        places = PLACES[-1:] if free else PLACES  # of a free field the end alone is the data's
        table = [self._row(subject, states, k, n) for k in range(len(PLACES) - len(places), len(PLACES))]
        return self._finding(subject, table, list(states), n, free)

    def _row(self, subject: Subject, states: dict, k: int, n: int) -> dict:
        t, _ = next(iter(states.values()))[k]
        x0 = subject.held_out[: max(2 * n, 4)].double()
        forward = subject.sde.perturb(x0, t, subject.normal(x0.shape, "marginals", k))
        ruler = Ruler(forward, n, subject.seed)
        noise = torch.exp(-subject.sde.lam(t)).item()
        row = dict(
            t=t.item(),
            noise=noise,
            halves=ruler.halves["sliced_wasserstein"],
            halves_sd=ruler.noise["sliced_wasserstein"],
        )
        for name, path in states.items():
            row[name] = ruler(path[k][1])["sliced_wasserstein"]
        if len(states) == 2:
            a, b = (path[k][1] for path in states.values())
            row["SDE to ODE"] = sliced_wasserstein(a[: ruler.m], b[: ruler.m]).item()
        return row

    def _finding(self, subject: Subject, table, names, n: int, free: bool) -> Finding:
        away = {
            name: max(table, key=lambda row, name=name: (row[name] - row["halves"]) / row["halves_sd"])
            for name in names
        }
        surprise = {name: (row[name] - row["halves"]) / row["halves_sd"] for name, row in away.items()}
        ratio = {name: max(row[name] / row["halves"] for row in table) for name in names}
        worst = max(surprise, key=surprise.get)
        status = "good" if surprise[worst] < 4 else "look" if max(ratio.values()) < 2 else "bad"
        row = away[worst]
        measured = (
            f"{worst} at t = {row['t']:.3g}: {row[worst]:.3g} from the noised data; two halves of the data are "
            f"{row['halves']:.3g} ± {row['halves_sd']:.2g} apart ({n} samples each)"
        )
        expected = "as far as two halves of the data: all three have the density p_t at every t"
        meaning = (
            "of a free field the end alone is compared: on the way it has marginals of its own"
            if free
            else "SDE and ODE off together: the score, or a prior that the noised data have not reached; one of them alone: "
            "its discretisation, or a score that solves no Fokker–Planck equation"
        )
        advice = (
            "diffcli explain shows whether the prior is reached; more training, or more steps to see whether they help"
        )
        x = [torch.log(torch.tensor(row["noise"])).item() for row in table]
        lines = [Series(name, x, [row[name] for row in table]) for name in names]
        lines.append(
            Series("two halves of the data", x, [row["halves"] for row in table], [row["halves_sd"] for row in table])
        )
        ticks = [(place, f"{row['t']:.2g}") for place, row in zip(x, table, strict=True)]
        label = "t, evenly in log-SNR: data left, noise right"
        chart = Chart("Distance to the noised data", label, "sliced W₂", lines, ticks=ticks, log_y=True)
        numbers = {"samples": n, "steps": {name: STEPS[name] for name in names}, "times": rows_of(table)}
        return Finding(status, measured, expected, meaning, "" if status == "good" else advice, numbers, [chart])


def rows_of(table: list[dict]) -> list[dict]:
    """With names fit for JSON."""
    return rows(**{name.replace(" ", "_").replace("-", "_").lower(): [row[name] for row in table] for name in table[0]})


@torch.no_grad()
def walk(subject: Subject, sampler, steps: int, n: int) -> list[tuple[Tensor, Tensor]]:
    """t and the states (n, *S) float64 on the CPU at each of the places, from the prior on."""
    times = UniformLam()(subject.sde, steps)
    at = [round(place * steps) for place in PLACES]
    sampler.setup(subject.denoiser)
    states: list[list[Tensor]] = [[] for _ in at]
    for part in subject.batches(n):
        noise = ItemNoise(subject.seed, range(part.start, part.stop), subject.shape, subject.dtype, subject.device)

        def see(i, x):
            if i in at:
                states[at.index(i)].append(x.double().cpu())

        sample(subject.denoiser, sampler, sampler.begin(subject.sde, noise), times, noise, "stop", see)
    return [(times[i], torch.cat(found)) for i, found in zip(at, states, strict=True)]
