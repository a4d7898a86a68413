"""Where metrics go: metrics.csv always; wandb and TensorBoard where they were asked for, never able to stop a training."""

import csv
import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from diffcli.errors import UsageError

COLUMNS = ("step", "loss", "val_loss", "lr", "grad_norm", "samples_per_second")
CLASSIFIED = (*COLUMNS[:3], "val_accuracy", *COLUMNS[3:])  # of a classifier


class MetricsCSV(Logger):
    """metrics.csv with one row a log event; a resumed run drops the rows behind its step and goes on."""

    def __init__(self, path: Path, resumed_at: int | None = None, columns: tuple[str, ...] = COLUMNS):
        super().__init__()
        self.path, self.columns = Path(path), columns
        rows = []
        if resumed_at is not None and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and _is_before(row, resumed_at)]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    name = "metrics"
    version = ""

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The config is in run.json."""

    def log_metrics(self, metrics, step=None) -> None:
        row = {k: v for k, v in metrics.items() if k in self.columns}
        if row:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow({"step": step} | row)


def _is_before(row: dict[str, str], step: int) -> bool:
    """Whether a row belongs to the steps 0 ... step - 1; the validation after them has the number `step`."""
    return int(row["step"]) < step + (not row["loss"])


class SafeWandbLogger(WandbLogger):
    """wandb, of which any failure is one warning; training goes on and metrics.csv has everything."""

    _dead = False

    def _try(self, call, *args, **kwargs):
        if self._dead:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a logging service may fail in any way
            self._dead = True
            print(
                f"warning: wandb logging stopped ({type(error).__name__}: {error}); metrics.csv goes on",
                file=sys.stderr,
            )

    def log_metrics(self, *args, **kwargs):
        self._try(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args, **kwargs):
        self._try(super().log_hyperparams, *args, **kwargs)

    def finalize(self, *args, **kwargs):
        self._try(super().finalize, *args, **kwargs)
        if not self._dead and self._experiment is not None:
            self._try(self._experiment.finish)


def wandb_logger(
    save_dir: str,
    project: str = "diffcli",
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
) -> Logger:
    """A run of its own under save_dir/wandb; offline unless an API key is set or mode says otherwise."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode == "offline":
        print(f"wandb: offline; `wandb sync {save_dir}/wandb/offline-run-*` uploads it later", flush=True)
    return SafeWandbLogger(
        save_dir=save_dir,
        project=project,
        name=name,
        group=group,
        tags=tags,
        mode=mode,
        reinit="finish_previous",
        log_model=False,
    )


def tensorboard_logger(save_dir: str) -> Logger:
    """TensorBoard files under save_dir/tensorboard.  Raises UsageError if the extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("logger=tensorboard needs the extra", 'pip install "diffcli[tensorboard]"')
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir, name="tensorboard", version="")
