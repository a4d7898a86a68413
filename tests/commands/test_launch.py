"""What started a process, how many there are, what they train on together, and that no two of them share their noise."""

import os
import subprocess
import sys

import pytest
import torch

from diffcli.commands.launch import arithmetic, launched, processes_of
from diffcli.data.points import Points
from diffcli.errors import UsageError
from diffcli.randomness import Draw
from diffcli.training.data import BatchOrder
from diffcli.training.ranks import Launched

TINY = (
    "data=moons", "data.n=200", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=10", "preview.every=0",
    "trainer.max_steps=4", "trainer.val_check_interval=1000", "device=cpu",
)  # fmt: skip
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
TORCHRUN |= {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SRUN = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3", "SLURM_NODEID": "1"}
SRUN |= {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_LOCALID": "1"}

FOUND = {
    "a person": ({}, Launched()),
    "torchrun": (TORCHRUN, Launched("torchrun", 5, 8, 1, 2, "node7", 29500)),
    "srun": (SRUN, Launched("srun", 3, 4, 1, 2, "gpu07", 15071)),
    "a second srun of a job": (SRUN | {"SLURM_STEP_ID": "1"}, Launched("srun", 3, 4, 1, 2, "gpu07", 15000 + 4170)),
    "a step of fewer tasks": (
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"},
        Launched("srun", 0, 1, 0, 1, "127.0.0.1", 15071),
    ),
    "torchrun in srun": (SRUN | TORCHRUN, Launched("torchrun", 5, 8, 1, 2, "node7", 29500)),
    "a batch script": ({k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"}, Launched()),
    "a batch step's number": (SRUN | {"SLURM_STEP_ID": str(2**32 - 5)}, Launched()),
    "srun --pty bash": (SRUN | {"SLURM_JOB_NAME": "bash"}, Launched()),
    "an interactive job": (SRUN | {"SLURM_JOB_NAME": "interactive"}, Launched()),
    "submitit inside a job": (
        SRUN | {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "9"},
        Launched("submitit", 0, 1, port=15009),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_started_a_process(name):
    environment, expected = FOUND[name]
    assert launched(environment) == expected


FOUR_ON_TWO = Launched("torchrun", 3, 4, 1, 2, "a", 1)


@pytest.mark.parametrize(
    ("found", "devices", "nodes", "expected"),
    [
        (Launched(), 1, 1, (0, 1, 0, 0)),
        (Launched(), 4, 1, (0, 4, 0, 3)),  # it starts the others
        (FOUR_ON_TWO, 2, 2, (3, 4, 1, 0)),
        (Launched("srun", 1, 2, 1, 2, "a", 1), 4, 2, (4, 8, 1, 3)),  # one a node, which starts the others there
        (Launched("srun", 0, 1), 2, 1, (0, 2, 0, 1)),
    ],
)
def test_the_place_of_a_process(found, devices, nodes, expected, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    here = processes_of(found, devices, nodes)
    assert (here.rank, here.size, here.node, here.others) == expected
    assert here.local == (1 if found is FOUR_ON_TWO else 0)


@pytest.mark.parametrize(
    ("found", "devices", "nodes", "sentence"),
    [
        (Launched(), 4, 2, "trainer.num_nodes=2 needs a program that starts a process on each node"),
        (Launched("srun", 0, 3), 2, 1, "srun started 3 processes on 1 node, and the trainer wants 2"),
        (FOUR_ON_TWO, 4, 2, "torchrun started 4 processes on 2 nodes, and the trainer wants 2 nodes x 4 devices = 8"),
        (FOUR_ON_TWO, 4, 1, "torchrun started 4 processes on 2 nodes, and the trainer wants 4"),
    ],
)
def test_numbers_that_do_not_agree_are_refused(found, devices, nodes, sentence):
    with pytest.raises(UsageError) as raised:
        processes_of(found, devices, nodes)
    assert raised.value.message.startswith(sentence)


def test_nodes_of_unequal_numbers_are_refused():
    with pytest.raises(UsageError, match="srun started 3 processes on 2 nodes"):
        launched(SRUN | {"SLURM_NTASKS": "3"})


@pytest.mark.parametrize(
    ("accumulated", "devices", "nodes", "expected"),
    [
        (1, 1, 1, None),
        (2, 4, 2, "batch: 64 x 2 accumulated x 4 devices x 2 nodes = 1,024 items a step; optim.lr=0.002"),
        (1, 2, 1, "batch: 64 x 2 devices = 128 items a step; optim.lr=0.002 is not rescaled (linear rule: 0.004)"),
    ],
)
def test_the_arithmetic_of_a_step(accumulated, devices, nodes, expected):
    config = {"batch_size": 64, "optim": {"lr": 2e-3}, "trainer": {"accumulate_grad_batches": accumulated}}
    found = arithmetic(config, devices, nodes)
    assert found is None if expected is None else found.startswith(expected)


def test_sharded_weights_are_refused_before_any_work(cli, tmp_path):
    for words in (("trainer=fsdp", "device=cpu"), ("trainer.strategy=fsdp_cpu_offload", "device=cpu")):
        done = cli("train", *(w for w in TINY if w != "device=cpu"), *words, "out=run")
        assert done.code == 2 and "weight average (EMA)" in done.err
    assert not list(tmp_path.iterdir())


RECORD = """
import os, torch
from diffcli.training.module import Training
real = Training.losses
def losses(self, batch, draw):
    loss, more = real(self, batch, draw)
    if isinstance(draw.step, int):
        with torch.no_grad():
            x0 = self.encoded(batch[0], draw)
            t, _ = self.loss.time(self.denoiser.sde, len(x0), draw)
        names = [name for name, _ in self.named_parameters()]
        content = {"x": batch[0], "x0": x0, "t": t, "eps": draw.normal("eps", x0.shape), "names": names}
        content["before"] = [p.detach().clone() for p in self.parameters()]
        content["gradient"] = torch.autograd.grad(loss.mean(), list(self.parameters()), retain_graph=True)
        torch.save(content, f"rank{draw.rank}-step{draw.step}.pt")
    return loss, more
Training.losses = losses
"""


def run(tmp_path, *argv, faults=""):
    (tmp_path / "sitecustomize.py").write_text(faults)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*map(str, argv)], cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.heavy
def test_ranks_share_no_item_time_or_noise_and_step_on_the_mean_of_their_gradients(tmp_path):
    plain = (
        "optim.method=adamw",
        "optim.warmup=0",
        "optim.decay=none",
        "optim.weight_decay=0",
        "trainer.gradient_clip_val=0",
    )
    words = [*TINY, *plain, "trainer=ddp", "devices=2", "out=run"]
    run(tmp_path, sys.executable, "-m", "diffcli", "train", *words, faults=RECORD)
    items, seen = Points("moons", n=200).split("train"), []
    orders = [iter(BatchOrder(len(items), 10, 0, rank, 2)) for rank in (0, 1)]
    for step in range(4):
        zero, one = (torch.load(tmp_path / f"rank{rank}-step{step}.pt") for rank in (0, 1))
        for rank, found in enumerate((zero, one)):
            indices = next(orders[rank])
            assert torch.equal(found["x"], items.__getitems__(indices)[0])
            assert torch.equal(found["eps"], Draw(0, step, rank).normal("eps", found["x0"].shape))
            seen += indices
        for name in ("x", "t", "eps"):
            assert not torch.isin(zero[name].flatten(), one[name].flatten()).any()
        assert all(torch.equal(a, b) for a, b in zip(zero["before"], one["before"], strict=True))
        if step:  # Adam's first step is lr times the sign of the mean gradient, to within its epsilon
            continue
        differ = 0  # weights that one rank's own gradient would have moved the other way
        after = torch.load(tmp_path / "rank0-step1.pt")["before"]
        for a, b, before, moved in zip(zero["gradient"], one["gradient"], zero["before"], after, strict=True):
            mean = (a + b) / 2
            expected = before - 2e-3 * mean / (mean.abs() + 1e-8)
            large = mean.abs() > 1e-5
            assert torch.allclose(moved[large], expected[large], atol=1e-6)
            differ += (a * b < 0).sum().item()
        assert differ
    assert len(set(seen)) == len(seen) == 80


@pytest.mark.heavy
def test_every_way_to_start_two_ranks_ends_with_the_same_weights(tmp_path):
    python, found = sys.executable, {}
    script = os.path.join(os.path.dirname(python), "diffcli")
    ways = {
        "module": (python, "-m", "diffcli", "train", "trainer=ddp", "devices=2", "out=module"),
        "script": (script, "train", "trainer=ddp", "devices=2", "out=script"),
        "sweep": (python, "-m", "diffcli", "train", "-m", "seed=1,0", "trainer=ddp", "devices=2", "out=sweep"),
        "torchrun": (python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "diffcli", "train"),
        "submitit": (
            python, "-m", "diffcli", "train", "-m", "hydra/launcher=submitit_local", "trainer=ddp", "devices=2", "out=submitit",
        ),
    }  # fmt: skip
    for name, argv in ways.items():
        run(tmp_path, *argv, *TINY)
        runs = {"sweep": ["sweep/1", "sweep/0"], "submitit": ["submitit/0"], "torchrun": ["outputs/train/*"]}
        folders = [next(iter(tmp_path.glob(f"{part}/checkpoints/last.ckpt"))) for part in runs.get(name, [name])]
        found[name] = torch.load(folders[0], weights_only=True)["state_dict"]
    for name, weights in found.items():
        assert all(torch.equal(value, weights[key]) for key, value in found["module"].items()), name
