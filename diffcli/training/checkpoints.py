"""When checkpoints are written, and how: under a final name there is always a whole one."""

from pathlib import Path

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from diffcli.checkpoint import write
from diffcli.errors import NumericalError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's writer, by `checkpoint.write`."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        write(checkpoint, path)


class Checkpoints(L.Callback):
    """last.ckpt and stepNNNNNNN.ckpt (the newest `keep`) every `every` steps, best.ckpt at the lowest val_loss so far."""

    def __init__(self, folder: Path, every: int, keep: int, minutes: float | None = None):
        self.folder, self.every, self.keep, self.minutes = Path(folder), every, keep, minutes
        self.best = float("inf")
        self._saved = -1

    def on_train_batch_end(self, trainer, module, *_) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self._saved:
            if self.keep:
                self._save(trainer, f"step{step:07d}.ckpt")
                if trainer.is_global_zero:
                    for old in sorted(self.folder.glob("step*.ckpt"))[: -self.keep]:
                        old.unlink()
            self.save_last(trainer)

    def on_validation_end(self, trainer, module) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not trainer.sanity_checking and loss.item() < self.best:
            self.best = loss.item()
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer, module) -> None:
        if trainer.global_step != self._saved:
            self.save_last(trainer)

    def save_last(self, trainer) -> None:
        """Write last.ckpt."""
        self._saved = trainer.global_step
        self._save(trainer, "last.ckpt")

    def _save(self, trainer, name: str) -> None:
        if not all(torch.isfinite(p).all() for p in trainer.lightning_module.parameters()):
            raise NumericalError(
                f"a weight is not finite after step {trainer.global_step}; the last checkpoint before it is kept",
                "a smaller optim.lr",
            )
        trainer.save_checkpoint(self.folder / name)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self.best = checkpoint["best"]
