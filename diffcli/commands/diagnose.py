"""`diffcli diagnose`: what a model has learned and where it fails, and the program's own laws, on one page."""

import copy
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from diffcli import checkpoint
from diffcli.advice import nearest
from diffcli.commands.common import pick_device, plain, recorded, typed
from diffcli.commands.conditions import as_unconditional
from diffcli.commands.model import GROUPS, Model, check_shape, load_model
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.settings import check_settings
from diffcli.commands.source import refuse_source
from diffcli.diagnosis.checks import CHECKS
from diffcli.diagnosis.finding import Finding
from diffcli.diagnosis.page import WORDS
from diffcli.diagnosis.report import HTML, JSON, about, brief, write, write_laws
from diffcli.diagnosis.subject import MOST, Subject
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.errors import UsageError
from diffcli.randomness import ItemNoise

ITEMS = 2000, 256  # by default: of few dimensions, of many
FEWEST = 8  # of fewer, the errors themselves are chance
OF_A_MODEL = ("weights=", "dtype=", "split=", "dequantize=", "checks=", "n=", "times=", "probes=", "exact_up_to=")
OF_A_MODEL += ("data", "sde", "schedule=", "trust=")
BROKEN = 4  # exit code of a self-check that found a law broken


def run(cfg) -> int:
    if cfg.self_check is True:
        return self_check(cfg)
    device = pick_device(cfg.device)
    model = load_model(cfg, device)
    refuse_source(model, "it has a velocity and no score for the checks to look at", "diffcli evaluate")
    as_unconditional(model)
    checks = chosen_checks(model.config["checks"])
    check_shape(model, model.data.shape, "the data")
    items = model.data.split(cfg.split)
    model.data.split("train")
    n = min(_count(model), len(items))
    if n < FEWEST:
        few = "1 item" if n == 1 else f"{n} items"
        raise UsageError(f"{few} of the {cfg.split} split cannot tell a fault from chance: it takes {FEWEST} at least")
    path = choose("diagnose", model.config)
    if cfg.dry_run:
        say(f"would check {', '.join(checks)} of {model.source} on {n} items of the {cfg.split} split")
        return 0
    held_out = model.data.held_out and cfg.split == "test"
    folder = create(path, "diagnose", model.config)
    with recorded(folder):
        subject = subject_of(model, device)
        found, seconds = measure(subject, checks)
        protocol = about(
            subject, model=model.source, data=type(model.data).__name__, split=cfg.split, held_out=held_out
        )
        write(path, protocol, found, seconds)
        folder.write("finished", nfe=subject.nfe, results={name: brief(f) for name, f in found.items()})
    for name, finding in found.items():
        say(f"{WORDS[finding.status]:<15} {name:<11} {finding.measured}")
    if not held_out:
        say(f"note: the {cfg.split} split of this data set is not held out from training")
    say(f"  {path / HTML}\n  {path / JSON}")
    return 0


def chosen_checks(wanted) -> list[str]:
    """The names of the checks, in the page's order.  Raises UsageError for one that is not there."""
    if wanted == "all":
        return list(CHECKS)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    for name in wanted:
        if name not in CHECKS:
            raise UsageError(f"there is no check {name!r}{nearest(name, CHECKS)}", f"checks=[{','.join(CHECKS)}]")
    if not wanted:
        raise UsageError("checks=[] leaves nothing to check", "checks=all")
    return [name for name in CHECKS if name in wanted]


def subject_of(model: Model, device: torch.device) -> Subject:
    """The model with its items in model space, and with its other weights where it has them."""
    config, n = model.config, _count(model)
    dtype = torch.float64 if _small(model) else getattr(torch, config["dtype"])
    other, names = _other_weights(model)
    for denoiser in (model.denoiser, other):
        if denoiser is not None:
            denoiser.to(dtype)
    held_out, train = _items(model, config["split"], 2 * n), _items(model, "train", max(MOST, n))
    data = TrainingSet(lambda: train, model.shape, model.data.transform.levels, getattr(model.data, "mixture", None))
    settings = {k: config[k] for k in ("times", "probes", "exact_up_to", "batch_size", "seed")}
    n = min(n, len(held_out))
    return Subject(model.denoiser, other, names, held_out, train, data, n, device=device, dtype=dtype, **settings)


def _small(model: Model) -> bool:
    return math.prod(model.shape) <= model.config["exact_up_to"]


def _count(model: Model) -> int:
    """How many items are asked for."""
    return model.config["n"] or ITEMS[not _small(model)]


def _items(model: Model, split: str, most: int) -> torch.Tensor:
    """The first items of a split in model space, dequantised as in training."""
    items = model.data.split(split)
    n = min(most, len(items))
    x, _ = items.__getitems__(range(n))
    u = None
    if model.data.transform.levels and model.config["dequantize"] == "uniform":
        u = ItemNoise(model.config["seed"], range(n), model.shape, torch.float64).uniform(f"dequantize {split}")
    return model.data.transform.encode(x.double(), u)


def _other_weights(model: Model) -> tuple[Denoiser | None, dict[str, str]]:
    """The model with raw weights where it has averaged ones, and the other way round; what the two are called."""
    if model.config["ckpt"] is None:
        return None, {"model": "model"}
    path, own = Path(model.config["ckpt"]), model.config["weights"]
    content = checkpoint.read(path)
    if not content["ema"]:
        return None, {"model": "model"}
    other = {"ema": "raw", "raw": "ema"}[own]
    twin = copy.deepcopy(model.denoiser)
    checkpoint.load_weights(getattr(twin, "inner", twin), content, other, path)
    return twin, {"model": own, "other": other}


def measure(subject: Subject, checks: list[str]) -> tuple[dict[str, Finding], dict[str, float]]:
    """Each check's finding and its seconds."""
    found, seconds = {}, {}
    with tqdm(total=len(checks), unit="check", disable=None, leave=False) as bar:
        for name in checks:
            bar.set_description(name)
            begun = time.monotonic()
            found[name] = CHECKS[name](subject)
            seconds[name] = round(time.monotonic() - begun, 3)
            bar.update()
    return found, seconds


def self_check(cfg) -> int:
    """The laws on the installed program: exit code 0 where all hold, 4 where one does not."""
    from diffcli.diagnosis import self_check as laws

    config, device = plain(cfg), pick_device(cfg.device)
    check_settings(config, GROUPS)
    if config["ckpt"] is not None or typed("network="):
        raise UsageError("self_check=true looks at the program and takes no model", "diffcli diagnose ckpt=PATH")
    if other := next((key for key in OF_A_MODEL if typed(key)), None):
        key = other.rstrip("=")
        raise UsageError(f"self_check=true always takes the same laws, so that {key} says nothing", f"{key} left out")
    path = choose("diagnose", config)
    if cfg.dry_run:
        say("would check the laws of this program")
        return 0
    folder = create(path, "diagnose", config)
    with recorded(folder):
        found = laws.run(device, lambda claims: tqdm(claims, desc="laws", unit="law", disable=None, leave=False))
        write_laws(path, found, folder.record["versions"], folder.record["hardware"])
        broken = [law.name for law in found if not law.passed]
        folder.write("finished", results={"laws": len(found), "broken": broken})
    for law in found:
        verdict, where = ("holds", "") if law.passed else ("BROKEN", f" ({law.where})")
        say(f"{verdict:<7} {law.value:>9.2e} (at most {law.bound:.2e}) {law.seconds:6.1f} s  {law.name}{where}")
    say(f"{len(found) - len(broken)} of {len(found)} laws hold\n  {path / HTML}\n  {path / JSON}")
    return BROKEN if broken else 0
