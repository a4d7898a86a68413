"""`diffcli nll`: log-likelihood of data under a model with its errors, and the variational bound beside it."""

import time

from diffcli.commands.build import build
from diffcli.commands.common import pick_device, recorded, typed
from diffcli.commands.going_on import find_place
from diffcli.commands.model import Model, check_process, check_shape, load_model
from diffcli.commands.nll_given import told
from diffcli.commands.nll_measure import measure
from diffcli.commands.nll_report import Report
from diffcli.commands.nll_text import show
from diffcli.commands.prepare import training_set
from diffcli.commands.quick import quicken
from diffcli.commands.run_folder import say
from diffcli.commands.source import refuse_source
from diffcli.data.pictures import is_image, picture
from diffcli.diffusion.bound import ContinuousBound, DiscreteBound, VariationalBound
from diffcli.diffusion.likelihood import Likelihood, LogDensity
from diffcli.diffusion.prior import Prior
from diffcli.errors import UsageError
from diffcli.sampling import padded

# of likelihood=ode: what each choice does without
UNUSED = {
    "divergence": {"exact": ("probes", "noise", "along", "control"), "hutchinson": ()},
    "solver": {
        "exponential": ("max_nfe",),
        "rk45": ("steps",),
        "rk4": ("tol", "max_nfe"),
        "heun": ("tol", "max_nfe"),
    },
}


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = load_model(cfg, device, shares=True)
    refuse_source(
        model, "nll would need their density, and there are the items alone", "diffcli evaluate, or a model from noise"
    )
    _check_unused(model.config["likelihood"])
    likelihood = build(model.config["likelihood"], "likelihood")
    if likelihood.needs_process:
        check_process(model, "likelihood=path, or ")
    items = model.data.split(cfg.split)
    n = min(cfg.n or len(items), len(items))
    check_shape(model, items[0][0].shape, "the data")
    _check_dequantize(model)
    tell = told(model)
    _setup(likelihood, model)
    bound = _bound(model, likelihood)
    quicken(model.denoiser, model.config)
    if cfg.compile and bound is None and isinstance(likelihood, Likelihood):
        say("compile=true: a divergence is taken of the network as it is; compiled is what also=elbo evaluates")
    place = find_place("nll", model.config)
    if place.finished:
        return 0
    if cfg.dry_run:
        say(f"would measure {n} items of the {cfg.split} split under {model.source}")
        return 0
    folder, path, size = place.create(), place.path, padded(n, cfg.batch_size)
    with recorded(folder), place.rows(n, size, "item") as rows:
        begun = time.monotonic()
        images = is_image(model.shape)
        report = Report(model, n, len(items), likelihood, bound, path / "nll.csv", images)
        if rows.rows == n:  # a likelihood says what it has found once for all items after a call
            rows.keep((n - 1) // size * size)
        for batch in measure(model, items, n, likelihood, bound, device, tell, rows.rows):
            rows.append(**batch.columns, **({} if batch.parts is None else {"parts": batch.parts}))
            report.findings = batch.findings
            report.follow(rows)
        results = report.results()
        notes = {"nll.csv": ""}
        if bound is not None:
            notes |= _draw_bound(report, results, path)
        if images:
            extremes = items.__getitems__(report.extremes())[0].numpy()
            picture(extremes, path / "grid.png", model.data)
            notes["grid.png"] = " (most likely first, least likely last)"
        seconds = round(time.monotonic() - begun, 3)
        folder.write("finished", nfe=report.nfe, results=results | {"measuring_seconds": seconds})
        rows.remove()
    show(report, results)
    for name, note in notes.items():
        say(f"  {path / name}{note}")
    return 0


def _check_unused(node: dict) -> None:
    """Refuse a setting of the ODE that its solver or divergence would not look at."""
    for part, keys in UNUSED.items():
        for key in keys.get(node.get(part), ()):
            if typed(f"likelihood.{key}="):
                fits = "|".join(name for name, others in keys.items() if key not in others)
                raise UsageError(
                    f"likelihood.{part}={node[part]} has no {key}",
                    f"likelihood.{key} left out, or likelihood.{part}={fits}",
                )


def _check_dequantize(model: Model) -> None:
    """Refuse a way to dequantise that nothing here would use."""
    how = model.config["dequantize"]
    if model.data.transform.levels is None and typed("dequantize=") and how != "none":
        raise UsageError(f"dequantize={how}: these data are continuous and have no levels", "dequantize= left out")
    if typed("dequantize_samples") and how != "importance":
        fits = "dequantize_samples= left out" if model.data.transform.levels is None else "dequantize=importance"
        raise UsageError(f"dequantize={how} takes one value of an item", fits)


def _setup(likelihood: LogDensity, model: Model) -> None:
    try:
        likelihood.setup(model.denoiser, training_set(model.data))
    except ValueError as error:
        raise UsageError(f"likelihood: {error}") from error


def _bound(model: Model, likelihood: LogDensity) -> VariationalBound | None:
    """The bound that also=elbo asks for.  Raises UsageError where it does not go with the rest."""
    config, sde = model.config["elbo"], model.denoiser.sde
    if model.config["also"] is None:
        if typed("elbo."):
            raise UsageError("elbo.* is of the variational bound, which was not asked for", "also=elbo")
        return None
    if not likelihood.normalised:
        raise UsageError(
            "also=elbo stands beside a density, and this one is known up to a constant only", "likelihood=ode"
        )
    discrete = config["bound"] == "discrete" or (config["bound"] == "auto" and sde.times is not None)
    if not discrete and any(typed(f"elbo.{key}") for key in ("T", "variance")):
        raise UsageError("elbo.T and elbo.variance are of a chain's bound", "elbo.bound=discrete")
    levels = _decoder_levels(model, discrete)
    try:
        if discrete:
            auto = "learned" if model.denoiser.outputs == 2 else "small"
            variance = auto if config["variance"] == "auto" else config["variance"]
            bound = DiscreteBound(config["times"], config["T"], variance)
        else:
            bound = ContinuousBound(config["times"])
        prior = getattr(likelihood, "prior", None)
        bound.setup(model.denoiser, prior if isinstance(prior, Prior) else None, levels)
    except ValueError as error:
        raise UsageError(f"elbo: {error}") from error
    return bound


def _decoder_levels(model: Model, discrete: bool) -> int | None:
    """The levels of a decoder over bins, None for a density.

    auto: a chain's own is over bins; a continuous bound takes the dequantised values that the ODE takes, if there are any.
    """
    levels, wish = model.data.transform.levels, model.config["elbo"]["decoder"]
    if wish == "bin" and levels is None:
        raise UsageError("elbo.decoder=bin: these data are continuous and have no levels", "elbo.decoder=density")
    over_bins = wish == "bin" or (wish == "auto" and (discrete or model.config["dequantize"] == "none"))
    return levels if over_bins else None


def _draw_bound(report: Report, results: dict, path) -> dict[str, str]:
    """Write bound.csv and bound.png."""
    from diffcli.explain.bound_plot import plot

    found = results["elbo"]
    names = {"L_T": "prior", "integral": "steps", "reconstruction": "reconstruction"}
    if isinstance(report.bound, DiscreteBound):
        names = {"L_T": "prior", "Σ L_{t-1}": "steps", "L_0": "reconstruction"}
    terms = {name: found[key] for name, key in names.items()} | {
        "-ELBO": found["nats"],
        "-log p": -results["log_prob_mean"],
    }
    report.write_strata(path / "bound.csv")
    title = f"variational bound of {results['n']} items, model {report.model.source}"
    plot(report.strata(), terms, report.bound.per, title, path / "bound.png")
    return {"bound.csv": "", "bound.png": " (the bound's terms over t)"}
