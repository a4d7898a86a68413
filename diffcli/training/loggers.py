"""Where metrics go: metrics.csv always; wandb and TensorBoard where they were asked for, never able to stop a training."""

import contextlib
import csv
import importlib.util
import json
import netrc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from diffcli.errors import UsageError
from diffcli.training import log_process
from diffcli.writing import whole

COLUMNS = ("step", "loss", "val_loss", "lr", "grad_norm", "loss_spike", "samples_per_second", "data_wait")
WAIT = 60  # seconds for the rest of a log, after the training
LIMIT = 2**24  # bytes that wait to be logged
CLASSIFIED = (*COLUMNS[:3], "val_accuracy", *COLUMNS[3:])  # of a classifier


class MetricsCSV(Logger):
    """metrics.csv with one row a log event; a resumed run keeps the rows before `kept`, of training and of validation."""

    def __init__(self, path: Path, kept: tuple[int, int] | None = None, columns: tuple[str, ...] = COLUMNS):
        super().__init__()
        self.path, self.columns = Path(path), columns
        rows = []
        if kept is not None and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and _is_before(row, *kept)]
        with whole(self.path) as temporary, temporary.open("w", newline="") as file:
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


def _is_before(row: dict[str, str], training: int, validation: int) -> bool:
    return int(row["step"]) < (training if row["loss"] else validation)


class Outside(Logger):
    """Hands everything to a process of its own (`log_process`), and never waits for it while training.

    kind, options: where that process logs to.  What it has not taken yet is kept, up to LIMIT bytes.  It is started by the first
    entry, in the process of rank 0 alone.  `folder`'s pictures (samples/*.png, denoised.png) are logged when they are there.
    """

    def __init__(self, kind: str, folder: str | Path, options: dict):
        super().__init__()
        self.kind, self.folder, self.options = kind, Path(folder), options
        self._process: subprocess.Popen | None = None
        self._pending, self._shown, self._step, self._over = bytearray(), set(), None, False

    version = ""

    @property
    def name(self) -> str:
        return self.kind

    @rank_zero_only
    def log_hyperparams(self, params: dict) -> None:
        self._shown = set(self._pictures())  # of a resumed run, which it has logged already
        self._send("config", params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._step = step
        self._send("metrics", step, dict(metrics))
        self._show()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait until all is logged, for WAIT seconds at most."""
        if self._over or self._process is None:
            return
        self._show()
        self._send("finish", 0 if status == "success" else 1)
        end = time.monotonic() + WAIT
        while self._pending and not self._over and time.monotonic() < end:
            time.sleep(0.02)
            self._flush()
        if self._over:
            return
        self._over = True
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            code = self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"warning: {self.kind} has not taken everything in {WAIT} s; metrics.csv has it", file=sys.stderr)
            self._process.kill()
            self._process.wait()
            return
        self._explain(code)

    def _pictures(self) -> list[tuple[Path, int]]:
        paths = [*sorted((self.folder / "samples").glob("step*.png")), *self.folder.glob("denoised.png")]
        return [(path, path.stat().st_mtime_ns) for path in paths]

    def _show(self) -> None:
        for picture in self._pictures():
            if picture in self._shown:
                continue
            self._shown.add(picture)
            path, number = picture[0], picture[0].stem.removeprefix("step")
            of_samples = number.isdigit()
            step = int(number) if of_samples else self._step
            self._send("picture", step, "samples" if of_samples else path.stem, str(path))

    def _send(self, *entry) -> None:
        if self._over:
            return
        if self._process is None:
            self._start()
        self._pending += json.dumps(entry, default=str).encode() + b"\n"
        self._flush()
        if len(self._pending) > LIMIT:
            self._stop("it takes nothing any more")

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", log_process.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the training, which then says how it ended
            )
        except OSError as error:
            self._stop(error.strerror)
            return
        os.set_blocking(self._process.stdin.fileno(), False)
        self._pending += json.dumps({"kind": self.kind, **self.options}).encode() + b"\n"

    def _flush(self) -> None:
        while self._pending and not self._over:
            try:
                del self._pending[: os.write(self._process.stdin.fileno(), self._pending[:65536])]
            except BlockingIOError:
                return
            except OSError:
                self._over = True
                self._explain(self._process.wait())

    def _explain(self, code: int) -> None:
        if code not in (0, log_process.SAID):
            print(f"warning: {self.kind} logging stopped (exit code {code}); metrics.csv goes on", file=sys.stderr)

    def _stop(self, reason: str) -> None:
        self._over = True
        print(f"warning: {self.kind} logging stopped ({reason}); metrics.csv goes on", file=sys.stderr)
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def wandb_logger(
    save_dir: str,
    project: str = "diffcli",
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
) -> Logger:
    """A run of its own under save_dir/wandb; offline unless there is an API key or mode says otherwise."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if mode == "offline":
        print(f"wandb: offline; `wandb sync {save_dir}/wandb/offline-run-*` uploads it later", flush=True)
    options = dict(save_dir=save_dir, mode=mode, project=project, name=name, group=group, tags=tags)
    return Outside("wandb", save_dir, options)


def _has_key() -> bool:
    """Whether wandb would find an API key: in the environment, or where `wandb login` put it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def tensorboard_logger(save_dir: str) -> Logger:
    """TensorBoard files under save_dir/tensorboard.  Raises UsageError if the extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("logger=tensorboard needs the extra", 'pip install "diffcli[tensorboard]"')
    return Outside("tensorboard", save_dir, {"save_dir": save_dir})
