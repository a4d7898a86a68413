"""The process that talks to wandb or TensorBoard: nothing that happens to them can reach a training.

Run as a file, it takes lines of JSON from its standard input, the first of which says where to; it needs no part of diffcli.  A
failure is one warning on stderr and the exit code SAID.  The end of the input, of a training that was killed, ends it too.
"""

import json
import os
import secrets
import signal
import sys
from pathlib import Path

SAID = 3  # exit code: what went wrong has been said
PATIENCE = 20.0  # seconds that a server has to answer; after that the run is kept on this disk
LAST = 600  # seconds to upload what is left after the training


class Wandb:
    """One run of wandb; its id lies in the run's folder, so that a resumed training goes on in it."""

    def __init__(self, save_dir: str, mode: str, say, **options):
        import wandb

        folder = Path(save_dir) / "wandb"
        folder.mkdir(exist_ok=True)
        file = folder / "run-id"
        if not file.exists() or not file.read_text():  # empty where the first start was killed
            file.write_text(secrets.token_hex(4))
        self.wandb = wandb
        settings = wandb.Settings(
            init_timeout=PATIENCE, console="off", disable_git=True, save_code=False, x_stats_pid=os.getppid()
        )
        given = dict(dir=save_dir, id=file.read_text(), resume="allow", settings=settings, **options)
        try:
            self.run = wandb.init(mode=mode, **given)
        except Exception as error:
            if mode == "offline":
                raise
            say(f"wandb goes on offline ({_words(error)}); `wandb sync {folder}/offline-run-*` uploads it later")
            wandb.teardown()  # its service holds the id to be in use
            self.run = wandb.init(mode="offline", **given)
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def config(self, config: dict) -> None:
        self.run.config.update(config, allow_val_change=True)

    def metrics(self, step: int | None, values: dict) -> None:
        self.run.log(values | ({} if step is None else {"trainer/global_step": step}))

    def picture(self, step: int, name: str, path: str) -> None:
        self.metrics(step, {name: self.wandb.Image(path)})

    def finish(self, code: int) -> None:
        self.run.finish(exit_code=code)


class TensorBoard:
    """Event files under save_dir/tensorboard."""

    def __init__(self, save_dir: str, say):
        folder = Path(save_dir) / "tensorboard"
        folder.mkdir(exist_ok=True)
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def config(self, config: dict) -> None:
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in _flat(config)}
        for summary in hparams(plain, {}):
            self.writer.file_writer.add_summary(summary)

    def metrics(self, step: int | None, values: dict) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # where a disk is full, it is said here

    def picture(self, step: int, name: str, path: str) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, code: int) -> None:
        self.writer.close()


KINDS = {"wandb": Wandb, "tensorboard": TensorBoard}


def main() -> None:
    """Log what the lines say until the last one."""
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)  # they are the training's, which tells when it ends
    err = os.dup(2)  # what the libraries print there themselves is nobody's
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def say(text: str) -> None:
        os.write(err, f"warning: {_without_key(text)}\n".encode())

    first = json.loads(sys.stdin.readline() or "null")
    if first is None:
        return
    kind = first.pop("kind")
    try:
        sink, code = KINDS[kind](**first, say=say), 1  # 1: a training that never says how it ended was killed
        for line in sys.stdin:
            what, *values = json.loads(line)
            if what == "finish":
                code = values[0]
                break
            if what != "picture" or os.path.isfile(values[-1]):
                getattr(sink, what)(*values)
        signal.alarm(LAST)
        sink.finish(code)
    except BaseException as error:  # noqa: BLE001 - a logging service may fail in any way
        say(f"{kind} logging stopped ({_words(error)}); metrics.csv goes on")
        os._exit(SAID)  # without what the libraries do at exit, which may wait for ever


def _words(error: BaseException) -> str:
    """An error's name and first line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _without_key(text: str) -> str:
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def _flat(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    main()
