"""The pictures of `diffcli sample trajectory=true`: how x becomes a sample, and what the model estimates on the way."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.commands.model import Model
from diffcli.commands.run_folder import say
from diffcli.data.flow import flow
from diffcli.data.pictures import gif, is_image, strip
from diffcli.data.scatter import scatter_frames, scatter_gif
from diffcli.errors import UsageError

COLUMNS = 12  # times in a strip of images
ROWS = 6  # items in one
FILMED = 16  # items in a film of images
PATHS = 200  # points in a flow plot, and times at most
FILM = 24  # times in a film of points
BEHIND = 2000  # data points in a flow plot


class Trajectory:
    """x and x0_hat of the first `items` of n items at up to `most` of the times, the first and the last among them.

    x0_hat at times[i] is the newest estimate made at a t >= times[i] before the sampler has left x at times[i + 1]: that from x
    itself, of a sampler which asks the model there.
    """

    def __init__(self, times: Tensor, n: int, items: int, most: int):
        steps = len(times) - 1
        self.at = sorted({round(i * steps / (most - 1)) for i in range(most)})
        self.times, self.n, self.reached = times.tolist(), min(n, items), 0
        self._x: dict[tuple[int, int], Tensor] = {}
        self._x0: dict[tuple[int, int], Tensor] = {}

    def callback(self, first: int, i: int, x: Tensor) -> None:
        """x at times[i], of a batch that starts at item `first`."""
        self.reached = i
        if i in self.at and first < self.n:
            self._x[i, first] = x[: self.n - first].to("cpu", copy=True)

    def see(self, first: int, x0: Tensor, t: Tensor) -> None:
        """An estimate made at t, () or (B,)."""
        if first >= self.n:
            return
        x0, t = x0[: self.n - first], t[: self.n - first] if t.ndim else t
        for i in self.at:
            if i < self.reached:
                continue
            before = self._x0.get((i, first))
            if before is None or (t.ndim == 0 and t >= self.times[i]):
                self._x0[i, first] = x0
            elif t.ndim:
                late = (t >= self.times[i]).view(-1, *[1] * (x0.ndim - 1))
                self._x0[i, first] = torch.where(late, x0, before)

    @property
    def x(self) -> Tensor:
        """(frames, items, *S)."""
        return self._stack(self._x)

    @property
    def x0(self) -> Tensor:
        """(frames, items, *S)."""
        return self._stack(self._x0)

    def _stack(self, kept: dict[tuple[int, int], Tensor]) -> Tensor:
        firsts = sorted({first for _, first in kept})
        return torch.stack([torch.cat([kept[i, first].float().cpu() for first in firsts]) for i in self.at])


def watch(model: Model, times: Tensor, n: int) -> Trajectory:
    """The trajectory that the pictures of this model need."""
    return Trajectory(times, n, FILMED, COLUMNS) if is_image(model.shape) else Trajectory(times, n, PATHS, PATHS)


def draw(folder: Path, trajectory: Trajectory, times: Tensor, model: Model) -> list[Path]:
    """Write the pictures; x is divided by sqrt(alpha^2 + sigma^2) where that varies over twofold, as on a VE path."""
    sde, times = model.denoiser.sde, times[trajectory.at]
    size = (sde.alpha(times) ** 2 + sde.sigma(times) ** 2).sqrt()
    scaled = bool(size.max() > 2 * size.min())
    moving = bool((times.diff() < 0).all())
    heads = [f"t = {t:.2g}" for t in times.tolist()] if moving else [f"step {i}" for i in trajectory.at]
    x = trajectory.x
    near = _decode(x / size.to(x).view(-1, *[1] * (x.ndim - 1)) if scaled else x, model)
    still, film = folder / "trajectory.png", folder / "trajectory.gif"
    if is_image(model.shape):
        levels = model.data.transform.levels
        rows = {"$x_t$": near[:, :ROWS], r"$\hat{x}_0$": _decode(trajectory.x0[:, :ROWS], model)}
        strip(rows, heads, still, levels)
        gif(near, film, levels)
        return [still, film]
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), FILM)).round().astype(int))
    frames, titles = _decode(x[shown], model), [heads[i] for i in shown]
    scatter_frames(frames, titles, still)
    scatter_gif(frames, titles, film)
    clock, name = (sde.lam(times), r"$\lambda = \log(\alpha_t / \sigma_t)$") if moving else (trajectory.at, "step")
    over = r" $/\,\sqrt{\alpha_t^2 + \sigma_t^2}$" if scaled else ""
    flow(near, clock, folder / "flow.png", _behind(model), name, over)
    return [folder / "flow.png", still, film]


def _decode(frames: Tensor, model: Model) -> np.ndarray:
    return torch.stack([model.data.transform.decode(f) for f in frames]).numpy()


def _behind(model: Model) -> Tensor | None:
    """The data to draw behind the paths; a sample needs none, so that their files may be gone."""
    try:
        items = model.data.split("train")
    except UsageError as error:
        say(f"note: flow.png shows no data: {error.message}")
        return None
    x = items.__getitems__(range(min(len(items), BEHIND)))[0]
    return x if x.shape[1:] == model.shape else None
