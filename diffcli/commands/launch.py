"""What started this process: a person, torchrun, SLURM's srun or submitit; and Lightning's Trainer for its processes."""

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from diffcli.commands.common import typed
from diffcli.errors import UsageError
from diffcli.training.ranks import HERE, Launched

if TYPE_CHECKING:  # it imports Lightning, which takes longer than to find a wrong setting
    from diffcli.training.processes import Processes

TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
NO_STEP = 2**32 - 16  # SLURM numbers what is no srun (a batch script, an interactive shell) from here
BACKSTOP = 120  # seconds that a process group of GPUs waits longer: its own time-out ends a process without a word


def launched(env=os.environ) -> Launched:
    """The processes that were started with this command line.  Raises UsageError where their numbers make no sense."""
    if env.get("SUBMITIT_EXECUTOR") == "local":  # what SLURM says beside it is of the job around it
        job = int(env.get("SUBMITIT_LOCAL_JOB_ID", 0))
        rank, size = int(env.get("SUBMITIT_LOCAL_GLOBALID", 0)), int(env.get("SUBMITIT_LOCAL_NTASKS", 1))
        return Launched("submitit", rank, size, port=_port(job, 0))
    if env.keys() >= TORCHRUN:
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        per_node = int(env.get("LOCAL_WORLD_SIZE", size))
        node = int(env.get("GROUP_RANK", rank // per_node))
        return _even(
            Launched("torchrun", rank, size, node, size // per_node, env["MASTER_ADDR"], int(env["MASTER_PORT"]))
        )
    if _in_srun(env):
        from lightning.fabric.plugins.environments import SLURMEnvironment

        nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
        size = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
        names = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or HERE
        address = HERE if nodes == 1 else SLURMEnvironment.resolve_root_node_address(names)
        port = int(env.get("MASTER_PORT") or _port(int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"])))
        rank, node = int(env["SLURM_PROCID"]), int(env.get("SLURM_NODEID", 0))
        return _even(Launched("srun", rank, size, node, nodes, env.get("MASTER_ADDR") or address, port))
    return Launched()


def _in_srun(env) -> bool:
    """A batch script or a shell inside an allocation has the numbers of its tasks too, but runs once."""
    if env.get("SLURM_JOB_NAME") in ("bash", "interactive") or not {"SLURM_STEP_ID", "SLURM_PROCID"} <= env.keys():
        return False
    return int(env["SLURM_STEP_ID"]) < NO_STEP


def _port(job: int, step: int) -> int:
    """The same for all processes of a job, and most likely another for the next job of this machine."""
    return 15000 + (job + 4099 * step) % 17000


def _even(found: Launched) -> Launched:
    if found.size % found.nodes:
        raise UsageError(
            f"{found.by} started {found.size} processes on {found.nodes} nodes, and each node needs as many as the others",
            "srun --ntasks-per-node=DEVICES" if found.by == "srun" else "torchrun --nproc-per-node=DEVICES",
        )
    return found


def fill_in(cfg, found: Launched) -> None:
    """Take the numbers of nodes and devices from the launcher, where the user gave none."""
    if found.size > 1 and not (typed("devices=") or typed("trainer.devices=") or typed("trainer.num_nodes=")):
        cfg.trainer.devices, cfg.trainer.num_nodes = found.per_node, found.nodes


def processes_of(found: Launched, devices: int, nodes: int) -> "Processes":
    """This process among `nodes` x `devices`: a launcher starts one a device, or one a node, which then starts the others.

    Raises UsageError for any other number.
    """
    from diffcli.training.processes import Processes

    size, by = devices * nodes, found.by or "diffcli"
    wanted = f"{nodes} nodes x {devices} devices = {size}" if nodes > 1 else f"{size} (devices)"
    if (found.size, found.nodes) == (size, nodes) and size > 1:
        return Processes(found.rank, size, _local(found), found.node, found.address)
    if (found.per_node, found.nodes) == (1, nodes):
        address = found.address if nodes > 1 else HERE
        return Processes(found.node * devices, size, 0, found.node, address, others=devices - 1)
    if found.size == 1:
        raise UsageError(
            f"trainer.num_nodes={nodes} needs a program that starts a process on each node",
            f"srun diffcli train …, or torchrun --nnodes={nodes} --nproc-per-node={devices} -m diffcli train …",
        )
    how = "--nodes={} --ntasks-per-node={}" if by == "srun" else "--nnodes={} --nproc-per-node={}"
    raise UsageError(
        f"{by} started {found.size} processes on {found.nodes} node{'s' * (found.nodes > 1)}, and the trainer wants {wanted}",
        f"{by} {how.format(nodes, devices)}, or trainer.devices={found.per_node} trainer.num_nodes={found.nodes}",
    )


def placed(found: Launched, word: dict) -> "Processes":
    """This process, by what rank 0 says of their number."""
    return processes_of(found, word["size"] // found.nodes, found.nodes)


def _local(found: Launched) -> int:
    names = {"srun": "SLURM_LOCALID", "torchrun": "LOCAL_RANK", "submitit": "SUBMITIT_LOCAL_LOCALID"}
    return int(os.environ.get(names[found.by], found.rank % found.per_node))


def build_trainer(config: dict, path: Path, found: Launched | None = None, processes: "Processes | None" = None):
    """Lightning's Trainer, without callbacks and loggers, of these processes, or of those that `found` and the config make.

    Raises UsageError for an option that it refuses, and for numbers of processes that do not agree.
    """
    from diffcli.training.processes import Processes

    strategy = str(config["trainer"].get("strategy"))
    if strategy.startswith("fsdp"):
        raise UsageError(
            f"trainer.strategy={strategy} shards the weights over the GPUs, and the weight average (EMA), previews and"
            " checkpoints need them whole",
            "trainer=ddp, with trainer.precision=bf16-mixed and trainer.accumulate_grad_batches where memory is short",
        )
    if processes is None:
        trainer = _trainer(config, path, Processes())
        processes = processes_of(found or Launched(), trainer.num_devices, trainer.num_nodes)
    if processes.size > 1:
        trainer = _trainer(config, path, processes)
    wait = config["timeout"] + (BACKSTOP if trainer.strategy.root_device.type == "cuda" else 0)
    trainer.strategy._timeout = timedelta(seconds=wait)  # no argument of the Trainer, only of each strategy
    return trainer


def _trainer(config: dict, path: Path, processes: "Processes"):
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = {k: v for k, v in config["trainer"].items() if k not in ("_target_", "max_time")}  # GracefulStop's
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
        plugins=[processes],
    )
    try:
        return L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


def arithmetic(config: dict, devices: int, nodes: int) -> str | None:
    """How many items a step takes, where that is not batch_size; and that the learning rate is not scaled with it."""
    factors = [
        (config["trainer"].get("accumulate_grad_batches", 1), "accumulated"),
        (devices, "devices"),
        (nodes, "nodes"),
    ]
    batch, several = config["batch_size"], [(n, name) for n, name in factors if n > 1]
    if not several:
        return None
    times = 1
    for n, _ in several:
        times *= n
    product = " x ".join([f"{batch:,}", *(f"{n} {name}" for n, name in several)])
    lr = config["optim"]["lr"]
    return f"batch: {product} = {batch * times:,} items a step; optim.lr={lr:g} is not rescaled (linear rule: {lr * times:g})"
