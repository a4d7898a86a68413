"""The figures of `diffcli nll` on screen."""

import math
from collections.abc import Iterator

from diffcli.commands.nll_report import Report
from diffcli.commands.run_folder import say

PRIORS = {"standard": "N(0, {}^2 I)", "moments": "the Gaussian with the moments of the training items, noised"}


def show(report: Report, results: dict) -> None:
    """Each figure with its errors, and what was measured."""
    config, units = report.model.config, report.model.data.units
    if "bits_per_dim" in results:
        how = f"dequantize={config['dequantize']}"
        if config["dequantize"] == "none":
            how += ": a density at the levels themselves, which bounds no probability"
        if "dequantize_effective_samples" in results:
            how += (
                f", {config['dequantize_samples']} places, of which {results['dequantize_effective_samples']:.1f} count"
            )
        say(f"bits/dim  {_pm(results, 'bits_per_dim', 'bits_per_dim_standard_error')}  ({how})")
    constant = "" if results["normalised"] else ", up to a constant that is the same for all items"
    say(f"log p     {_pm(results, 'log_prob_mean', 'log_prob_standard_error')} nats an item, in {units}{constant}")
    for line in (*_density(report, results), *_errors(report, results)):
        say(f"          {line}")
    if report.bound is not None:
        _show_bound(results)
    nfe, items = report.nfe, "1 item" if report.n == 1 else f"{report.n} items"
    least, most = nfe["min"], nfe["max"]
    counted = f"{least}" if least == most else f"{nfe['mean']:.1f} (from {least} to {most})"
    say(f"NFE       {counted} an item; {items} of the {config['split']} split, model {report.model.source}")


def _density(report: Report, results: dict) -> Iterator[str]:
    """Whose density it is, where that is one noise level's."""
    t, sde = getattr(report.likelihood, "t", None), report.model.denoiser.sde
    if t is None:
        return
    where = f"at t = {t.item():g}" if sde.is_process else "at the noise level of the model"
    if "grid_points" in results:
        where += f", normalised over {results['grid_points']:,} points of a grid"
    yield f"the density {where}"


def _errors(report: Report, results: dict) -> Iterator[str]:
    """A line for each error that is known, in bits/dim where that is the figure above."""
    unit, scale = ("bits/dim", report.d * math.log(2)) if report.has_bits else ("nats", 1.0)
    half = results["divergence_half_interval_of_mean"]
    if half is None:
        yield "one probe gives no error of the divergence estimate (likelihood.probes=2 or more does)"
    elif half > 0:
        each = report.t * results["divergence_std_err_mean"]
        orthogonal = report.model.config["likelihood"].get("noise") == "orthogonal"
        sure = "were its probes independent" if orthogonal else "95 %"
        yield (
            f"the divergence estimate leaves ± {half / scale:.2g} {unit} on the mean ({sure}),"
            f" ± {each / scale:.2g} on an item"
        )
        if "dequantize_effective_samples" in results:
            bias = 0.5 * float(report.tallies["variance"].mean)
            yield f"and inside the log of dequantize=importance it raises the value by {bias / scale:.2g} at most"
    if results["solver_err_mean"] is not None:
        yield f"the solver's own error is about {results['solver_err_mean'] / scale:.2g} {unit} an item"
    if results["truncation_mean"] is not None:
        at = results["protocol"]["t_min"]
        yield f"to end at t_min = {at:g} changes it by about {results['truncation_mean'] / scale:.2g} {unit}"
    if results["path_gap_mean"] is not None:
        yield f"another path to the item gives values that differ by {results['path_gap_mean']:.2g} nats"
    wish = report.model.config["likelihood"].get("prior")
    if wish is not None:
        yield f"prior: {PRIORS.get(wish, wish).format(format(results['protocol']['prior_std'], '.4g'))}"


def _show_bound(results: dict) -> None:
    found, protocol = results["elbo"], results["protocol"]["elbo"]
    kind = "continuous" if protocol["bound"].startswith("Continuous") else "discrete"
    label, of_what = "-ELBO", ", an upper bound of -log p"
    if "bits_per_dim" in found:
        of = "a level's probability" if protocol["decoder"] == "bin" else "the dequantised density"
        bits = _pm(found, "bits_per_dim", "bits_per_dim_standard_error")
        say(f"-ELBO     {bits} bits/dim, an upper bound from {of}")
        label = of_what = ""
    nats = f"{_pm(found, 'nats', 'standard_error')} nats an item{of_what}"
    say(f"{label:<10}{nats} ({kind}, elbo.times={protocol['times']})")
    names = ("L_T", "sum L_{t-1}", "L_0") if kind == "discrete" else ("L_T", "integral", "reconstruction")
    terms = zip(names, (found[k] for k in ("prior", "steps", "reconstruction")), strict=True)
    say("          = " + " + ".join(f"{name} {value:.4f}" for name, value in terms))
    noise = found["monte_carlo_error"] or 0.0
    if protocol["decoder"] == "density" and found["nats"] + 2 * noise < -results["log_prob_mean"]:
        say(
            "          below the -log p above, as it bounds that of the reverse SDE: the two are one for an exact score only"
        )
    if found["monte_carlo_error"] is not None:
        say(f"          of whose error the drawn times and noises leave ± {found['monte_carlo_error']:.2g}")


def _pm(results: dict, mean: str, error: str) -> str:
    if results[error] is None:
        return f"{results[mean]:.4f} (one item: no standard error)"
    return f"{results[mean]:.4f} ± {results[error]:.4f}"
