"""Pictures while training: samples from noise (or items of a source) that never changes, one item noised and recovered."""

import sys
from pathlib import Path

import lightning as L
import torch

from diffcli.data.base import Data
from diffcli.data.pair_picture import pairs_of
from diffcli.data.pictures import MOST_COLUMNS, image_grid, is_image, picture
from diffcli.data.translation_picture import translations
from diffcli.diffusion.grid import Grid
from diffcli.diffusion.guidance import Conditioned
from diffcli.diffusion.samplers import Sampler, sample
from diffcli.diffusion.watched import Watched
from diffcli.errors import NumericalError
from diffcli.randomness import ItemNoise
from diffcli.sampling import Conditions, Starts, draw_samples
from diffcli.training.agreement import Agreement
from diffcli.training.condition import Condition
from diffcli.training.ema import EMA

LEVELS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)  # t of the noised item


class _Leaving(Exception):
    """A picture is not worth the time that a scheduler gives between its signal and the end."""


class Preview(L.Callback):
    """samples/stepNNNNNNN.png every `every` steps and at the end; for images also denoised.png at the end."""

    def __init__(
        self,
        folder: Path,
        ema: EMA,
        data: Data,
        sampler: Sampler,
        grid: Grid,
        seed: int,
        every: int,
        n: int,
        steps: int,
        condition: Condition | None = None,
        side: Data | None = None,
        agreement: Agreement | None = None,
    ):
        self.folder, self.ema, self.data = Path(folder), ema, data
        self.sampler, self.grid, self.seed, self.every, self.n, self.steps = sampler, grid, seed, every, n, steps
        self.condition, self.side, self.agreement = condition, side, agreement or Agreement()
        self._done = -1

    def on_train_start(self, trainer, module) -> None:
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_) -> None:
        step = trainer.global_step
        due = self.every and step % self.every == 0 and step != self._done
        if due and module.denoiser.sde.is_process:
            self.show(trainer, module)

    def on_train_end(self, trainer, module) -> None:
        if self.every and module.denoiser.sde.is_process and not self.agreement.leaving:
            denoise = is_image(self.data.shape) and self.side is None
            self.show(trainer, module, denoise=denoise, samples=trainer.global_step != self._done)

    def show(self, trainer, module, denoise: bool = False, samples: bool = True) -> None:
        """Draw the pictures now, in rank 0."""
        self._done = trainer.global_step
        module.settle()
        if not trainer.is_global_zero:
            return
        module.denoiser.eval()
        try:
            with torch.no_grad(), self.ema.applied(module):
                if samples:
                    self._draw(module)
                if denoise:
                    self._denoise(module)
        except NumericalError as error:  # of an adaptive sampler on a model that knows little yet: no reason to stop
            print(f"warning: no preview at step {self._done} ({error.message})", file=sys.stderr)
        except _Leaving:
            pass  # a signal came; the training is about to save
        finally:
            module.denoiser.train()

    def _look(self, *_) -> None:
        if self.agreement.signum:
            raise _Leaving

    def _draw(self, module) -> None:
        sde, shape = module.denoiser.sde, self.data.shape
        starts = self.side and Starts(self.side.split("val"), self.side.transform, sde)
        times, words, n = self.grid(sde, self.steps), self._words(), self.n
        if words and n > len(words):
            n -= n % len(words)  # whole rows
        found = draw_samples(
            Watched(module.denoiser, self._look),
            self.sampler,
            times,
            shape,
            n,
            self.seed,
            n,
            device=module.device,
            given=self._given(),
            start=starts,
        )
        x = torch.cat([batch.x for batch in found]).float().cpu()
        self.folder.joinpath("samples").mkdir(exist_ok=True)
        x, file = self.data.transform.decode(x).numpy(), self.folder / "samples" / f"step{self._done:07d}.png"
        if self.condition is not None and self.condition.name == "image":
            pairs_of(self.data.split("val"), x, file, self.data)
        elif starts is None:
            picture(x, file, self.data, words)
        else:
            translations(starts.raw(range(n)).numpy(), x, file, self.side, self.data)

    def _words(self) -> list[str] | None:
        """The labels that the samples are given in turn, by name: as many as there is room for."""
        if self.condition is None or self.condition.name != "label":
            return None
        return list(self.data.class_names)[: min(self.n, MOST_COLUMNS)]

    def _given(self) -> Conditions | None:
        """Every label in turn, or the conditions of the first items of val."""
        if self.condition is None:
            return None
        words = self._words()
        if words:
            return Conditions(label=torch.arange(len(words)))
        items = self.condition.items(self.data.split("val"))
        x, y = items.__getitems__(range(min(self.n, len(items))))
        return Conditions(**self.condition(y, self.data.transform.encode(x)))

    def _denoise(self, module) -> None:
        """Three rows: one val item noised to each level, its x0_hat, and the end of the reverse walk from there."""
        sde, transform, denoiser = module.denoiser.sde, self.data.transform, module.denoiser
        items = self.data.split("val")
        items = items if self.condition is None else self.condition.items(items)
        x, y = items.__getitems__([0])
        x0, denoiser = transform.encode(x).float().to(module.device), Watched(denoiser, self._look)
        if self.condition is not None:
            denoiser = Conditioned(denoiser, **self.condition(y.to(module.device), x0))
        rows = ([x0], [x0], [x0])
        for i, u in enumerate(LEVELS):
            t = torch.tensor(u * sde.t_max, dtype=torch.float64)
            noise = ItemNoise(self.seed, range(1), x0.shape[1:], x0.dtype, module.device)
            xt = sde.perturb(x0, t, noise(f"denoise {i}"))
            times = self.grid(sde, min(4 * self.steps, self.grid.steps(sde) or 4 * self.steps))
            times = torch.cat([t[None], times[times < t]])
            end = sample(denoiser, self.sampler, xt, times, noise).x
            for row, x in zip(
                rows,
                (xt / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt().float(), denoiser(xt, t), end),
                strict=True,
            ):
                row.append(x)
        x = transform.decode(torch.cat([x for row in rows for x in row]).cpu()).numpy()
        image_grid(x, self.folder / "denoised.png", transform.levels, columns=len(LEVELS) + 1)
