"""`diffcli interpolate`: from one item to another, along a great circle of their latents or through what noise has left of both."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.commands.common import pick_device, recorded, typed
from diffcli.commands.encode import round_trip
from diffcli.commands.ends import End, read_pairs
from diffcli.commands.latents import by_batch, decode_all, encode_all, plan, plan_encoding, prepare
from diffcli.commands.model import Model, check_shape
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.walk import Walk, nfe_summary, nfe_text
from diffcli.data.pictures import gif, is_image, strip, write_pngs
from diffcli.data.ways import ways_picture
from diffcli.diffusion.encoding import Encoding
from diffcli.diffusion.interpolation import angle, from_time, noised_between, slerp
from diffcli.diffusion.samplers import sample
from diffcli.errors import UsageError
from diffcli.writing import whole

BEHIND = 2000  # points of the data that a way is drawn over
Pairs = list[tuple[End, End]]


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = prepare(cfg, device)
    _check_unused(cfg.way)
    pairs = read_pairs(model)
    along = cfg.way == "ode"
    if (
        along and model.config["noised"] is None
    ):  # pictures have no noise of their own, and vary too little in most directions
        model.config["noised"] = model.data.transform.levels is not None and model.denoiser.posterior_mean
    walk = plan_encoding(model, cfg.last, ", or way=stochastic") if along else _from_t(model)
    path = choose("interpolate", model.config)
    if cfg.dry_run:
        steps = len(walk.times) - 1
        say(f"would go from a to b in {cfg.frames} frames, {len(pairs)} pairs, {steps} steps with {model.source}")
        return 0
    folder = create(path, "interpolate", model.config)
    with recorded(folder):
        begun = time.monotonic()
        ends, frames, nfe, results = (_along_latents if along else _through_noise)(
            model, walk, pairs, cfg.frames, device
        )
        files = _write(path, model, pairs, ends, frames, cfg.png)
        steps = None if walk.sampler.evaluations is None else len(walk.times) - 1
        named = [[a.name, b.name] for a, b in pairs]
        results = {"pairs": named, "frames": cfg.frames, "last": walk.last, **results}
        results["seconds"] = round(time.monotonic() - begun, 3)
        folder.write("finished", steps=steps, nfe=nfe_summary(nfe), results=results)
    say(f"{len(pairs)} × {cfg.frames} frames, {nfe_text(nfe)} network evaluations each, with {model.source}")
    _show(model, results)
    for file in files:
        say(f"  {file}")
    return 0


def _check_unused(way: str) -> None:
    for key in ("t", "noise") if way == "ode" else ("noised",):
        if typed(f"{key}="):
            right = "stochastic" if way == "ode" else "ode"
            raise UsageError(f"{key}= is of way={right}, and this is way={way}", f"way={right}, or {key}= left out")


def _positions(pairs: int, frames: int) -> tuple[Tensor, Tensor]:
    """The pair and the position in [0, 1] of every frame, pair after pair."""
    return torch.arange(pairs).repeat_interleave(frames), torch.linspace(0, 1, frames, dtype=torch.float64).repeat(
        pairs
    )


def _folded(x: np.ndarray, pairs: int) -> np.ndarray:
    return x.reshape(pairs, -1, *x.shape[1:])


def _along_latents(model: Model, encoding: Encoding, pairs: Pairs, count: int, device):
    """Both ends (2 N, *S), the frames (N, F, *S) in source units, evaluations of a frame, and what was found of the latents."""
    flat = [end for pair in pairs for end in pair]
    z = torch.zeros(len(flat), *model.shape, dtype=torch.float64)
    given = [i for i, end in enumerate(flat) if end.x is not None]
    if given:
        x = torch.stack([flat[i].x for i in given])
        z[given] = encode_all(encoding, _given_by(model, [i // 2 for i in given]), x, device)[0].double()
    for i, end in enumerate(flat):
        if end.x is None:
            z[i] = end.latent(model.shape)
    a, b = z[0::2], z[1::2]
    pair, w = _positions(len(pairs), count)
    x, nfe = decode_all(encoding, model, slerp(a[pair], b[pair], w), device, of=lambda i: i // count)
    frames = _folded(x, len(pairs))
    ends = [frames[i // 2, -(i % 2)] if end.x is None else end.x.numpy() for i, end in enumerate(flat)]
    size = z.flatten(1).square().mean(1)
    results = {"angle": angle(a, b).tolist(), "norm2_over_d": size.reshape(-1, 2).tolist()}
    if given:
        back = np.stack([frames[i // 2, -(i % 2)] for i in given])
        results["ends"] = round_trip(torch.stack([flat[i].x for i in given]), back)
    return np.stack(ends), frames, nfe.numpy(), results


def _given_by(model: Model, pairs: list[int]) -> Model:
    """The model that tells row i what it tells pair `pairs[i]`."""
    if model.given is None:
        return model
    own = model.given
    return replace(model, given=lambda rows, *kind: own([pairs[min(i, len(pairs) - 1)] for i in rows], *kind))


def _from_t(model: Model) -> Walk:
    """The way from t down, of any sampler that walks the grid.  Raises UsageError."""
    walk, t = plan(model, model.config["last"]), model.config["t"]
    if not model.denoiser.posterior_mean:
        raise UsageError(
            "the model is a free field (cnf), which knows nothing of noise between data and prior", "way=ode"
        )
    if walk.sampler.one_level:
        raise UsageError(
            "this sampler stays at one noise level, and a mix at t is denoised from there", "sampler=ancestral"
        )
    try:
        times = from_time(walk.times, t)
    except ValueError as error:
        raise UsageError(str(error), f"t={(walk.times[0] + walk.times[-1]).item() / 2:.2g}") from error
    return Walk(walk.sampler, times, walk.last)


def _through_noise(model: Model, walk: Walk, pairs: Pairs, count: int, device):
    """The same by `noised_between` at t and the sampler from there."""
    config, dtype = model.config, getattr(torch, model.config["dtype"])
    transform, sde, t = model.data.transform, model.denoiser.sde, walk.times[0]
    whole = plan(model, config["last"])  # of what seeds give
    flat = [end for pair in pairs for end in pair]
    for i, end in enumerate(flat):
        if end.x is None:
            end.x = _sampled(model, whole, end, i // 2, device)
    ends = torch.stack([end.x.to(torch.float64) for end in flat])
    x0 = transform.encode(ends)
    pair, w = _positions(len(pairs), count)
    a, b = x0[0::2][pair], x0[1::2][pair]

    def step(rows, denoiser, noise, progress):
        parts = (part[rows].to(device, dtype) for part in (a, b))
        xt = noised_between(sde, *parts, w[rows], t, noise, config["noise"])
        return sample(denoiser, walk.sampler, xt, walk.times, noise, walk.last, progress=progress)

    x, nfe = by_batch(step, len(w), model, device, walk, "denoising", of=lambda i: i // count)
    frames = _folded(transform.decode(x).numpy(), len(pairs))
    alpha, sigma = (c(t).item() for c in (sde.alpha, sde.sigma))
    found = {"t": t.item(), "alpha": alpha, "sigma": sigma}
    back = np.stack([frames[i // 2, -(i % 2)] for i in range(len(flat))])
    return ends.numpy(), frames, nfe.numpy(), found | {"ends": round_trip(ends, back)}


def _sampled(model: Model, walk: Walk, end: End, pair: int, device) -> Tensor:
    """Sample 0 of the seed, in source units."""
    own = replace(model, config=model.config | {"seed": end.seed}, given=None)
    if model.given is not None:
        own.given = lambda rows, *kind: model.given([pair] * len(rows), *kind)

    def step(rows, denoiser, noise, progress):
        x = denoiser.sde.sample_prior(noise(0))
        return sample(denoiser, walk.sampler, x, walk.times, noise, walk.last, progress=progress)

    x, _ = by_batch(step, 1, own, device, walk, end.name)
    return model.data.transform.decode(x)[0]


def _write(path: Path, model: Model, pairs: Pairs, ends: np.ndarray, frames: np.ndarray, png: bool) -> list[Path]:
    with whole(path / "frames.npy") as file:
        np.save(file, frames)
    n, count = frames.shape[:2]
    if not is_image(model.shape):
        items = model.data.split("test")
        behind, _ = items.__getitems__(range(min(BEHIND, len(items))))
        check_shape(model, behind.shape[1:], "the data")
        ways_picture(frames, behind, model.data.units, path / "path.png")
        return [path / "path.png", path / "frames.npy"]
    levels = model.data.transform.levels
    ends = ends.reshape(n, 2, *model.shape)
    row = np.concatenate([ends[:, :1], frames, ends[:, 1:]], 1).swapaxes(0, 1)
    inside = [f"{i / (count - 1):.3g}" for i in range(count)]
    heads = ["a", *inside, "b"] if count <= 24 else ["a", *[""] * count, "b"]
    strip({"": row}, heads, path / "strip.png", levels)
    there = frames.swapaxes(0, 1)
    gif(np.concatenate([there, there[-2::-1]]), path / "interpolation.gif", levels)
    files = [path / "strip.png", path / "interpolation.gif", path / "frames.npy"]
    if png:
        names = [f"{p:03d}_{i:03d}" for p in range(n) for i in range(count)]
        write_pngs(frames.reshape(-1, *model.shape), path / "frames", levels, names)
        files.append(path / "frames")
    return files


def _show(model: Model, results: dict) -> None:
    if "angle" in results:
        angles, sizes = results["angle"], np.asarray(results["norm2_over_d"])
        between = f"{angles[0]:.0f}°" if len(angles) == 1 else f"{min(angles):.0f}° to {max(angles):.0f}°"
        say(f"latents: {between} apart, |z|²/d {', '.join(f'{a:.2f} and {b:.2f}' for a, b in sizes[:3])}")
    else:
        say(f"noise at t = {results['t']:g}: {results['alpha']:.3f} x0 + {results['sigma']:.3f} eps")
    if "ends" in results:
        found = results["ends"]
        relative = "" if found["relative"] is None else f", {found['relative']:.2g} of their standard deviation"
        what = "the ends come back" if "angle" in results else "the ends are drawn anew from p(x0|x_t)"
        say(f"{what}: r.m.s. difference {found['rms']:.3g} a value of {model.data.units}{relative}")
