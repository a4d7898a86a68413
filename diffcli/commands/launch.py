"""Lightning's Trainer, and how its processes start: on this machine, on several, by torchrun or by SLURM."""

import contextlib
import logging
import os
import sys
from pathlib import Path

import torch

from diffcli.errors import UsageError


def build_trainer(config: dict, path: Path):
    """Lightning's Trainer, without callbacks and loggers.  Raises UsageError for an option that it refuses."""
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = {k: v for k, v in config["trainer"].items() if k != "_target_"}
    fixed = dict(
        max_epochs=-1,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        default_root_dir=str(path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        logger=False,
    )
    try:
        return L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def as_worker_sees(path: Path, resume: Path | None):
    """While Lightning starts its other processes, argv is that of a worker that loads this run's resolved config.

    Lightning re-runs argv in them, or Hydra's command line where Hydra is in use, and both would compose the config anew and
    make folders of their own.  Afterwards the process group is taken down, so that the next job of a sweep can have its own.
    """
    from hydra.core.hydra_config import HydraConfig

    import __main__

    instance = HydraConfig.instance()
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DIFFCLI_RUN_DIR", "DIFFCLI_RESUME")
    saved = instance.cfg, sys.argv, getattr(__main__, "__spec__", None), {k: os.environ.get(k) for k in names}
    instance.cfg, sys.argv = None, [str(Path(__file__).resolve().parents[1] / "_worker.py")]
    __main__.__spec__ = None
    os.environ["DIFFCLI_RUN_DIR"] = str(Path(path).resolve())
    os.environ["DIFFCLI_RESUME"] = str(resume.resolve()) if resume else ""
    try:
        yield
    finally:
        instance.cfg, sys.argv, __main__.__spec__, environment = saved
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
