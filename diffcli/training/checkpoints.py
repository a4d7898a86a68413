"""When checkpoints are written, and how: under a final name there is always a whole one."""

import os
import time
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from diffcli.checkpoint import read, write
from diffcli.errors import DiffcliError, NumericalError
from diffcli.training.agreement import Agreement
from diffcli.training.nonfinite import finite
from diffcli.writing import TEMPORARY


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's writer, by `checkpoint.write`; `failure` is why the last one could not be written.

    One process writes and the others wait for it, so that it must not be the only one to learn of a failure.
    """

    failure: DiffcliError | None = None

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        try:
            write(checkpoint, path)
            self.failure = None
        except DiffcliError as error:
            self.failure = error

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        """By `checkpoint.read`: the file may be another one than that which was looked at before."""
        return read(path, None)


class Checkpoints(L.Callback):
    """last.ckpt and stepNNNNNNN.ckpt (the newest `keep`) every `every` steps, or `minutes` after the last; best.ckpt at the
    lowest val_loss so far.

    Raises on all ranks DiffcliError where one cannot be written, NumericalError where a weight is not finite.
    """

    def __init__(
        self, folder: Path, every: int, keep: int, minutes: float | None = None, agreement: Agreement | None = None
    ):
        self.folder, self.every, self.keep, self.minutes = Path(folder), every, keep, minutes
        self.agreement = agreement or Agreement()
        self.best = float("inf")
        self._saved = self._step = -1

    def on_train_start(self, trainer, module) -> None:
        self._step = trainer.global_step  # last.ckpt may be of another step than this one
        self._wind()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # within an accumulation
        self._step = step
        if step % self.every == 0 or self.agreement.save:
            if self.keep:
                self._save(trainer, f"step{step:07d}.ckpt")
                if trainer.is_global_zero:
                    for old in sorted(self.folder.glob("step*.ckpt"), key=lambda p: p.stat().st_mtime_ns)[: -self.keep]:
                        old.unlink(missing_ok=True)
            self.save_last(trainer)

    def on_validation_end(self, trainer, module) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if loss is None or trainer.sanity_checking or self.agreement.leaving:
            return
        if loss.item() < self.best:
            self.best = loss.item()
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer, module) -> None:
        self.save_last(trainer)

    def save_last(self, trainer) -> None:
        """Write last.ckpt, unless it is of this step already."""
        if trainer.global_step != self._saved:
            self._save(trainer, "last.ckpt")
            self._saved = trainer.global_step
            self._wind()

    def _wind(self) -> None:
        if self.minutes is not None:
            self.agreement.save_at, self.agreement.save = time.monotonic() + 60 * self.minutes, False

    def _save(self, trainer, name: str) -> None:
        trainer.lightning_module.settle()
        whole = finite(trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(whole):
            raise NumericalError(
                f"a weight is not finite after step {trainer.global_step}; the last checkpoint before it is kept",
                trainer.lightning_module.calmer,
            )
        trainer.save_checkpoint(self.folder / name)
        failure = trainer.strategy.broadcast(trainer.strategy.checkpoint_io.failure)
        if failure is not None:
            raise failure

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self.best = checkpoint["best"]


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; those of a living one are its own."""
    for part in (folder, folder / "checkpoints", folder / "samples"):
        for path in part.glob(TEMPORARY):
            pid = next((int(word) for word in path.name.split(".") if word.isdigit()), 0)
            if pid == os.getpid() or not _lives(pid):
                path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0
