"""`diffcli encode`: data to standard normal latents by the PF-ODE, what comes back, and what another model makes of them."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.commands.common import pick_device, recorded, typed
from diffcli.commands.conditions import check_own_labels, own_labels
from diffcli.commands.latents import (
    decode_all,
    encode_all,
    errors,
    plan_encoding,
    prepare,
    prepare_other,
    wants_own_labels,
)
from diffcli.commands.model import Model, check_shape
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.walk import nfe_summary, nfe_text
from diffcli.data.inputs import read_inputs
from diffcli.data.pictures import is_image
from diffcli.data.rows import rows_picture
from diffcli.diffusion.encoding import Encoding
from diffcli.errors import UsageError
from diffcli.sampling import Conditions
from diffcli.writing import whole

ITEMS = 64  # of the split, unless told
SHORT = 0.9  # |z|²/d


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = prepare(cfg, device, own=True)
    encoding = plan_encoding(model)
    x = _items(model)
    other, onward = _other(model, device)
    path = choose("encode", model.config)
    if cfg.dry_run:
        to = f" and decode them with {other.source}" if other else ""
        say(f"would encode {len(x)} items in {len(encoding.times) - 1} steps with {model.source}{to}")
        return 0
    folder = create(path, "encode", model.config)
    with recorded(folder):
        begun = time.monotonic()
        z, nfe = encode_all(encoding, model, x, device)
        back, _ = decode_all(encoding, model, z, device)
        arrays = {"inputs": x.numpy(), "latents": z.numpy(), "reconstructions": back}
        levels = model.data.transform.levels
        kinds = {"in": (x, levels), "back": (back, levels)}
        if other is not None:
            arrays["samples"], _ = decode_all(onward, other, z, device)
            kinds["to"] = (arrays["samples"], other.data.transform.levels)
        elif not is_image(model.shape):
            kinds = {"inputs": (x, levels), "latents": (z, None), "reconstructions": (back, levels)}
        for name, array in arrays.items():
            with whole(path / f"{name}.npy") as file:
                np.save(file, array)
        rows_picture(kinds, path / "reconstructions.png")
        results = {"n": len(x), "levels": levels, "t_data": encoding.times[-1].item(), "noised": encoding.noised}
        results |= {"round_trip": round_trip(x, back), "latents": statistics(z)}
        results["seconds"] = round(time.monotonic() - begun, 3)
        steps = None if encoding.sampler.evaluations is None else len(encoding.times) - 1
        folder.write("finished", steps=steps, nfe=nfe_summary(nfe.numpy()), results=results)
    _show(model, results, nfe.numpy())
    for name in ("reconstructions.png", *(f"{name}.npy" for name in arrays)):
        say(f"  {path / name}{_notes(other).get(name, '')}")
    return 0


def _items(model: Model) -> Tensor:
    """The items in source units, of input= or the split.  Raises UsageError."""
    config = model.config
    if config["input"] is not None:
        if typed("split="):
            raise UsageError("input= gives the items, and split= would too", "one of the two")
        if wants_own_labels(model):
            raise UsageError("label=own is the data's label of each item, and input= has none", "label=NAME")
        x = read_inputs(config["input"], model.shape, model.data.transform.levels)
        x = x[: config["n"] or len(x)]
    else:
        items = model.data.split(config["split"])
        n = min(config["n"] or ITEMS, len(items))
        x, y = items.__getitems__(range(n))
        check_shape(model, x.shape[1:], "the data")
        if wants_own_labels(model):
            check_own_labels(model)
            model.given = Conditions(label=own_labels(model, y))
    bad = ~x.double().flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise UsageError(f"item {int(bad.int().argmax())} of the input is not finite")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _other(model: Model, device: torch.device) -> tuple[Model | None, Encoding | None]:
    """The model of to= and its way, the same sampler and grid on its own SDE.  Raises UsageError where it does not fit."""
    if model.config["to"] is None:
        return None, None
    other = prepare_other(str(Path(model.config["to"]).expanduser()), model, device)
    if other.shape != model.shape:
        raise UsageError(
            f"the latents of {model.source} have the shape {model.shape}, and to={other.source} takes {other.shape}",
            "two models of one shape",
        )
    return other, plan_encoding(other)


def round_trip(x: Tensor, back: np.ndarray) -> dict:
    """How far what came back is from what went in, in source units and of the standard deviation of all its values."""
    error = errors(x, back)
    spread = x.double().std(correction=0).item()
    rms = math.sqrt(np.square(error).mean())
    return {
        "rms": rms,
        "mean": error.mean(),
        "sd": error.std(),
        "worst": error.max(),
        "worst_item": int(error.argmax()),
        "data_sd": spread,
        "relative": rms / spread if spread else None,
    }


def statistics(z: Tensor) -> dict:
    """Of latents (n, *S), beside what n draws of a standard normal would have: a mean of 0, a deviation of 1, |z|²/d = 1."""
    n, d = len(z), z[0].numel()
    size = z.double().flatten(1).square().mean(1)
    return {
        "mean": z.double().mean().item(),
        "sd": z.double().std(correction=0).item(),
        "norm2_over_d": size.mean().item(),
        "norm2_over_d_least": size.min().item(),
        "norm2_over_d_most": size.max().item(),
        "normal_mean_se": 1 / math.sqrt(n * d),
        "normal_norm2_over_d_se": math.sqrt(2 / (n * d)),
        "normal_norm2_over_d_sd": math.sqrt(2 / d),
    }


def _show(model: Model, results: dict, nfe: np.ndarray) -> None:
    found, z = results["round_trip"], results["latents"]
    relative = "" if found["relative"] is None else f", {found['relative']:.2g} of the data's standard deviation"
    say(f"{results['n']} items encoded, {nfe_text(nfe)} network evaluations each way, with {model.source}")
    say(
        f"round trip: r.m.s. error {found['rms']:.3g} a value of {model.data.units}{relative}; of an item {found['mean']:.2g} ± "
        f"{found['sd']:.2g}, worst {found['worst']:.2g} (item {found['worst_item']})"
    )
    say(
        f"latents: mean {z['mean']:+.3f}, deviation {z['sd']:.3f}, |z|²/d {z['norm2_over_d']:.3f} (of an item "
        f"{z['norm2_over_d_least']:.3f} to {z['norm2_over_d_most']:.3f}); standard normal: 0 ± {z['normal_mean_se']:.1g}, 1, "
        f"1 ± {z['normal_norm2_over_d_se']:.1g} (of an item ± {z['normal_norm2_over_d_sd']:.1g})"
    )
    if z["norm2_over_d"] < SHORT and not results["noised"]:
        say(
            "  shorter than noise, as of data that hardly vary in some directions: noised=true gives them the noise they lack"
        )


def _notes(other: Model | None) -> dict[str, str]:
    return {"samples.npy": f" (decoded with {other.source})"} if other is not None else {}
