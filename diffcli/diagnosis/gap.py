"""ODE against variational bound: a trained score makes two models, and this is how far apart they are."""

import torch

from diffcli.diagnosis.finding import Check, Finding, mean_se, no_mean, no_process, pm
from diffcli.diagnosis.loss import LINEAR_UP_TO
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import Chart, Series
from diffcli.diffusion.bound import ContinuousBound
from diffcli.diffusion.likelihood import Likelihood
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise

MOST_ITEMS = 64, 16  # of those whose Jacobians are taken whole, and are not
NOISES = 256, 64  # of the bound, an item
TELLING = 0.05  # nats a dimension: with a larger standard error a gap that is clearly off could look like none


class Gap(Check):
    """The continuous variational bound minus the ODE's negative log-likelihood, item by item, with the same prior."""

    name = "gap"
    title = "Likelihood by the ODE, and its variational bound"
    formula = "(ELBO bound on −log p of the reverse SDE) − (−log p of the PF-ODE), nats a dimension"

    def leave_out(self, subject):
        return no_process(subject) or no_mean(subject)

    def run(self, subject: Subject) -> Finding:
        n = min(subject.few, MOST_ITEMS[not subject.small])
        ode, bound = [], []
        likelihood = Likelihood(
            divergence="exact" if subject.small else "hutchinson",
            probes=subject.probes,
            prior="moments" if subject.d <= LINEAR_UP_TO else "standard",
        )
        elbo = ContinuousBound(NOISES[not subject.small])
        try:
            likelihood.setup(subject.denoiser, subject.data)
            elbo.setup(subject.denoiser, likelihood.prior)
            for part in subject.batches(n):
                noise = ItemNoise(
                    subject.seed, range(part.start, part.stop), subject.shape, torch.float64, subject.device
                )
                x0 = subject.to(subject.x0[part])
                found = likelihood(subject.denoiser, x0, noise)
                limit = elbo(subject.denoiser, x0, noise)
                ode.append(torch.stack([-found.log_prob, found.std_err], 1).double().cpu())
                bound.append(torch.stack([limit.value, limit.std_err], 1).double().cpu())
        except (NumericalError, ValueError) as error:
            return Finding("left out", f"it could not be measured: {error}")
        return self._finding(subject, torch.cat(ode) / subject.d, torch.cat(bound) / subject.d)

    def _finding(self, subject: Subject, ode: torch.Tensor, bound: torch.Tensor) -> Finding:
        gap, se = mean_se(bound[:, 0] - ode[:, 0])
        pairs = {"ode": mean_se(ode[:, 0]), "bound": mean_se(bound[:, 0])}
        size = abs(gap) - (2 * se if se == se else 0.0)
        status = "good" if size < 0.01 else "look" if size < 0.1 else "bad"
        if status == "good" and se > TELLING:
            status = "measured"
        measured = (
            f"bound minus ODE {pm(gap, se)} nats a dimension: −log p is {pm(*pairs['ode'], 4)} by the ODE and at most "
            f"{pm(*pairs['bound'], 4)} by the bound ({len(ode)} items{', too few to tell' if status == 'measured' else ''})"
        )
        expected = "0 for an exact score, item by item; of a trained one either may be the smaller"
        meaning = (
            "the bound is that of the reverse SDE's model, which forgets errors made early; the ODE carries them along: a large "
            "gap says that the two are different models, and both numbers belong into a report"
        )
        advice = (
            "loss.weight=likelihood trains the bound; the Fokker–Planck residual above shows at which t the two part"
        )
        values = sorted(zip(ode[:, 0].tolist(), bound[:, 0].tolist(), bound[:, 1].tolist(), strict=True))
        x, y, error = (list(column) for column in zip(*values, strict=True))
        ends = [min(x), max(x)]
        chart = Chart(
            "Item by item",
            "−log p by the ODE, nats a dimension",
            "bound, nats a dimension",
            [Series("items", x, y, error, joined=False), Series("equal", ends, ends, dashed=True)],
        )
        numbers = {
            "items": len(ode),
            "ode_nats_per_dim": pairs["ode"],
            "bound_nats_per_dim": pairs["bound"],
            "bound_minus_ode": (gap, se),
            "ode_divergence_std_err": ode[:, 1].mean().item(),
            "bound_std_err": bound[:, 1].mean().item(),
        }
        return Finding(status, measured, expected, meaning, "" if status == "good" else advice, numbers, [chart])
