"""Which pictures a process, its data and a model call for, and the numbers that are drawn in them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.data.base import Data
from diffcli.data.pictures import is_image
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.forward import forward_path
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import DPM2, EulerMaruyama
from diffcli.diffusion.sde import SDE
from diffcli.explain import figures
from diffcli.explain.fields import (
    box,
    in_rows,
    lattice,
    law_of,
    reverse_path,
    score_error,
    shown_times,
)
from diffcli.explain.noise_sequence import Sample
from diffcli.explain.tables import coefficients, fine_times
from diffcli.randomness import key

ROWS, FRAMES = 6, 10  # items and times of a strip of images
PANELS, POINTS, MARKED, KNOTS = 6, 1500, 5, 12  # times, points, ways drawn of point sets, and their knots a panel
SHADES, ARROWS = 80, 17  # a side of the lattices of log-density and of arrows
DRAWS = 4000  # of which the score error is the mean
STEPS, PATHS = 300, 6  # of the paths in one dimension
HEAT = 240  # a side of the heat map


@dataclass(frozen=True)
class Scene:
    """A process on a sample of its data, a model where there is one, and what they are called."""

    sde: SDE
    sample: Sample
    denoiser: Denoiser | None
    name: str
    seed: int

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(key(self.seed, "explain", purpose) % 2**63)

    def noise(self, purpose: str, shape):
        """Standard normal noise of step i, in float64."""
        draws = self.generator(purpose)
        return lambda i: torch.randn(shape, dtype=torch.float64, generator=draws)

    @property
    def learned(self) -> Denoiser | None:
        """The model where it has a score of its own: it is not the exact one, and no free field."""
        own = self.denoiser is not None and self.denoiser.posterior_mean and not hasattr(self.denoiser, "mixture")
        return self.denoiser if own else None


def draw_all(scene: Scene, data: Data, path: Path) -> tuple[list[str], list[dict]]:
    """Write the pictures into the folder `path`: their names, and the learned score's errors where the exact is known."""
    sde, x = scene.sde, scene.sample.x
    t = fine_times(sde)
    curves = {name: values.numpy() for name, values in coefficients(sde, t).items()}
    figures.coefficients(curves, scene.name, path / "coefficients.png")
    files, errors = ["coefficients.png"], []
    if is_image(data.shape):
        _images(scene, path / "forward.png")
        return [*files, "forward.png"], errors
    if x[0].numel() > 1:
        _points(scene, path / "forward.png")
        files.append("forward.png")
    if x[0].numel() > 2:
        return files, errors
    truth, what = law_of(sde, x, scene.sample.mixture)
    times = shown_times(sde, scene.sample.moments.std)
    if scene.learned is not None and scene.sample.mixture is not None:
        draws = scene.generator("score error")
        found = [score_error(scene.learned, truth, time, DRAWS, draws) for time in times]
        noise = torch.exp(-sde.lam(times)).tolist()
        errors = [dict(t=a, noise=b, error=c) for a, b, c in zip(times.tolist(), noise, found, strict=True)]
    if x[0].numel() == 1:
        _one_dimension(scene, truth, what, path / "marginals.png")
        return [*files, "marginals.png"], errors
    _fields(scene, truth, what, times, [row["error"] for row in errors], path / "scores.png")
    files.append("scores.png")
    if hasattr(scene.learned, "energy"):
        _energies(scene, truth, what, times, path / "energy.png")
        files.append("energy.png")
    return files, errors


def _images(scene: Scene, path: Path) -> None:
    sde, x = scene.sde, scene.sample.x
    t = torch.linspace(sde.t_min, sde.t_max, FRAMES, dtype=torch.float64)
    x0 = x[torch.linspace(0, len(x) - 1, min(ROWS, len(x))).long()]
    frames = forward_path(sde, x0, t, scene.noise("forward", x0.shape))
    scale = torch.rsqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
    limits = x.min().item(), x.max().item()
    heads = [f"t = {a:.2g}\n{b:.1f} dB" for a, b in zip(t.tolist(), (8.685889638 * sde.lam(t)).tolist(), strict=True)]
    title = (
        f"{scene.name}: from data to noise, and its SNR; shown is x / sqrt(alpha² + sigma²), cut at the data's range"
    )
    figures.image_paths((scale.view(-1, 1, 1, 1, 1) * frames).numpy(), heads, limits, title, path)


def _points(scene: Scene, path: Path) -> None:
    sde, x = scene.sde, scene.sample.x.flatten(1)
    fine = torch.linspace(sde.t_min, sde.t_max, KNOTS * (PANELS - 1) + 1, dtype=torch.float64)
    x = forward_path(sde, x[:POINTS], fine, scene.noise("forward", x[:POINTS].shape)).numpy()
    ways = np.stack(
        [x[max(0, i - KNOTS) : i + 1, :MARKED] if i else x[[0] * (KNOTS + 1), :MARKED] for i in range(0, len(x), KNOTS)]
    )
    title = f"{scene.name}: from data to noise; in colour {ways.shape[2]} items and their ways since the panel before"
    figures.point_paths(x[::KNOTS], ways, fine[::KNOTS].tolist(), title, path)


def _level(sde: SDE, t: Tensor) -> str:
    return f"t = {t:.3g}, alpha = {sde.alpha(t):.2g}, sigma = {sde.sigma(t):.2g}"


@torch.no_grad()
def _fields(scene: Scene, truth: Exact, what: str, times: Tensor, errors: list[float], path: Path) -> None:
    sde, x = scene.sde, scene.sample.x.flatten(1)
    rows = {what: [], "learned": []}
    for i, t in enumerate(times):
        centre, half = box(sde, x, t)
        points = lattice(centre, half * (1 - 1 / ARROWS), ARROWS)
        log_p = in_rows(lambda a, t=t: truth.log_prob(a, t), lattice(centre, half, SHADES)).view(SHADES, SHADES)
        common = dict(centre=centre.tolist(), half=half, log_prob=log_p.numpy(), points=points.numpy())
        for name, denoiser, colour in (
            (what, truth, figures.COLOURS[0]),
            ("learned", scene.learned, figures.COLOURS[1]),
        ):
            if denoiser is None:
                continue
            arrows = sde.sigma(t) * in_rows(lambda a, t=t, d=denoiser: d.score(a, t).double(), points)
            error = f"\nrelative error {100 * errors[i]:.1f} %" if name == "learned" and errors else ""
            panel = dict(title=_level(sde, t) + error, arrows=arrows.numpy(), colour=colour)
            rows[name].append(common | panel)
    title = f"{scene.name}: score fields; arrows sigma · score (cut at 3), shade log p_t ({what})"
    figures.score_fields({name: panels for name, panels in rows.items() if panels}, title, path)


@torch.no_grad()
def _energies(scene: Scene, truth: Exact, what: str, times: Tensor, path: Path) -> None:
    sde, x = scene.sde, scene.sample.x.flatten(1)
    rows = {f"-log p_t ({what})": [], "learned energy": []}
    for t in times:
        centre, half = box(sde, x, t)
        points = lattice(centre, half, SHADES)
        for panels, fn in zip(
            rows.values(),
            (lambda a, t=t: -truth.log_prob(a, t), lambda a, t=t: scene.learned.energy(a, t)),
            strict=True,
        ):
            values = in_rows(fn, points).double().view(SHADES, SHADES).numpy()
            panels.append(dict(centre=centre.tolist(), half=half, values=values, title=_level(sde, t)))
    figures.surfaces(rows, f"{scene.name}: energies, each above its least value in the panel", path)


def _one_dimension(scene: Scene, truth: Exact, what: str, path: Path) -> None:
    """p_t over (t, x), and paths of the forward SDE, the reverse SDE and the PF-ODE over it."""
    sde, x = scene.sde, scene.sample.x.flatten(1)
    moments = scene.sample.moments
    times = UniformLam()(sde, STEPS)
    t = torch.cat([torch.linspace(times[-1].item(), sde.t_max, HEAT, dtype=torch.float64), times]).unique()
    spread = torch.sqrt((sde.alpha(t) * moments.std) ** 2 + sde.sigma(t) ** 2)
    wide = bool(spread.max() > 4 * spread.min())

    def scale(time):  # from x to what is drawn: where the path swells or shrinks much, its spread is divided out
        return (
            moments.std / torch.sqrt((sde.alpha(time) * moments.std) ** 2 + sde.sigma(time) ** 2)
            if wide
            else 1 + 0 * time
        )

    mean = moments.mean.abs().item()
    reach = (scale(t) * (sde.alpha(t) * mean + 3 * spread)).max().item()
    axis = torch.linspace(-reach, reach, HEAT, dtype=torch.float64)
    density = torch.stack(
        [truth.log_prob(axis[:, None] / c, time).exp() / c for time, c in zip(t, scale(t), strict=True)]
    )
    heat = dict(t=t.numpy(), x=axis.numpy(), density=density.T.numpy(), label="x std(x_0)/std(x_t)" if wide else "x")

    n = min(PATHS, len(x))
    even = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # the prior's quantiles: no two paths start alike
    start = sde.sample_prior(torch.special.ndtri(even)[:, None])
    forward = forward_path(sde, x[:n], times.flip(0), scene.noise("forward", (n, 1)))

    def panel(name, at, paths):
        return dict(title=name, t=at.numpy(), x=(scale(at)[:, None] * paths[..., 0]).numpy())

    rows = {what: [panel("forward SDE", times.flip(0), forward)]}
    for name, denoiser in ((what, truth), ("learned", scene.learned)):
        if denoiser is not None:
            noise = scene.noise("reverse", start.shape)
            sde_path, ode_path = (reverse_path(denoiser, s, start, times, noise) for s in (EulerMaruyama(), DPM2()))
            rows.setdefault(name, [rows[what][0]])
            rows[name] += [panel("reverse SDE", times, sde_path), panel("PF-ODE", times, ode_path)]
    title = f"{scene.name}: p_t of the data ({what}) and {n} paths"
    figures.densities(heat, rows, title, path)
