"""dry_run=true: what it predicts is what the run then takes."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from diffcli.commands.sample_forecast import Few, share_of
from diffcli.commands.train_forecast import parts_of
from diffcli.commands.usage import duration, peak_memory, volume
from diffcli.diffusion.denoiser import Rows
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import AnnealedLangevin, Deis, DPMpp2M, Heun, Resample, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.randomness import ItemNoise
from diffcli.training.trial import Lap

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
RUNS = {  # command line -> what is special
    "train data=moons network=mlp trainer.max_steps=400 batch_size=512": "many short steps",
    "train network.channels=16 trainer.max_steps=40 trainer.accumulate_grad_batches=2 trainer.val_check_interval=20"
    " checkpoint.every=10 preview.every=20": "accumulation, and what is beside the steps counts",
    "sample network=exact data=mixture data.name=sixteen n=4096 batch_size=512 sampler=heun steps=100": "evaluations",
}  # fmt: skip


def trial(first=0, **laps):
    one = {"start": [Lap(5, 4)], "step": [Lap(2, 1)], "end": [Lap(7, 6)]}
    return SimpleNamespace(first=first, laps=one | {k: [Lap(*lap) for lap in v] for k, v in laps.items()})


def config(steps=100, batches=1, val=30, every=40, keep=1, minutes=None, preview=50):
    trainer = {"max_steps": steps, "accumulate_grad_batches": batches, "val_check_interval": val}
    return {
        "trainer": trainer,
        "checkpoint": {"every": every, "keep": keep, "minutes": minutes},
        "preview": {"every": preview},
    }


def test_every_part_comes_as_often_as_in_the_run():
    laps = {"validation": [(9, 9), (3, 3)], "preview": [(8, 8), (1, 1)], "checkpoint": [(1, 1)]}
    found = {part.name: part for part in parts_of(config(), trial(**laps))}
    assert {name: part.times for name, part in found.items()} == {
        "start": 1, "step": 99, "validation": 3, "preview": 2, "end": 1, "checkpoint": 5,
    }  # fmt: skip
    assert (found["validation"].all, found["step"].all) == (Lap(15, 15), Lap(198, 99))
    resumed = {part.name: part.times for part in parts_of(config(batches=2, preview=0), trial(60, **laps))}
    assert resumed == {"start": 1, "step": 39, "validation": 2, "preview": 0, "end": 1, "checkpoint": 3}
    by_clock = parts_of(config(steps=1000, every=10**6, minutes=10), trial(**laps))[-1]
    assert by_clock.times == 2 * 3 + 1  # 2038 s and more without a checkpoint: one after each 600 s, and the last


@pytest.mark.parametrize("sampler", [Heun(), DPMpp2M(), Deis(), AnnealedLangevin(), Resample(DPMpp2M(), 3, 2)])
@pytest.mark.parametrize("m", [1, 4, 12])
def test_the_share_of_a_few_steps_is_that_of_their_evaluations(sampler, m):
    model, steps = Exact(VP(Linear()), GaussianMixture(torch.ones(1), torch.ones(1, 2), torch.eye(2)[None])), 12
    times, noise = UniformLam()(model.sde, steps), ItemNoise(0, range(16), (2,))
    few, ratio = share_of(sampler, steps, m, "stop")
    rows = Rows(model)
    sample(model, sampler, torch.randn(16, 2), times, noise, last="stop", progress=few)
    if not isinstance(sampler, Resample) or m == steps:  # whose stretches end at some steps alone
        assert ratio * rows.each(16) == pytest.approx(sampler.cost(steps))
    assert isinstance(few, Few) and len(few.chosen) == m


def test_numbers_in_words():
    assert [duration(s) for s in (0.01234, 45.678, 125, 7300)] == ["12.3 ms", "45.7 s", "2 min 5 s", "2 h 1 min"]
    assert [volume(b) for b in (5, 3 * 2**20, 1500 * 2**20)] == ["5 bytes", "3 MiB", "1.46 GiB"]
    before = peak_memory()
    kept = torch.ones(2**27 // 4)
    assert kept.numel() and peak_memory() >= before > 2**20


def test_says_what_it_measured_and_leaves_nothing(cli, tmp_path):
    tiny = ("data=moons", "network=mlp", "network.width=8", "network.blocks=1", "trainer.max_steps=50")
    done = cli("train", *tiny, "dry_run=true", "trainer.val_check_interval=25", "preview.every=25", "preview.n=4")
    assert done.code == 0, done.err
    for word in (
        "measured: a step of 64 items",
        "50 steps",
        "2 validations",
        "2 previews",
        "of memory",
        "of checkpoints",
    ):
        assert word in done.out
    done = cli("sample", "network=exact", "data=mixture", "n=40", "batch_size=16", "sampler=rk45", "dry_run=true")
    assert done.code == 0 and "3 batches of 16" in done.out and "chooses its own steps" in done.out, done.out
    assert not list(tmp_path.iterdir())


def predicted(text: str) -> tuple[float, float]:
    """CPU seconds and bytes, as the lines say."""
    cpu = re.search(r"; (?:(\d+) min )?([\d.]+) (s|ms) of CPU time", text)
    memory = re.search(r"predicted: ([\d.]+) (\w+) of memory", text)
    seconds = 60 * int(cpu[1] or 0) + float(cpu[2]) / (1000 if cpu[3] == "ms" else 1)
    return seconds, float(memory[1]) * UNITS[memory[2]]


@pytest.mark.heavy
@pytest.mark.parametrize("line", RUNS, ids=RUNS.values())
def test_time_and_memory_within_a_fifth(line, tmp_path):
    """CPU time, which hardly depends on what else the machine does; the best of three pairs, since a little it does."""
    shares = []
    for _ in range(3):
        told, record = _run(line, tmp_path, "dry_run=true"), _run(line, tmp_path, "out=r", "overwrite=true")
        results = json.loads((tmp_path / "r/run.json").read_text())["results"]
        cpu, memory = predicted(told)
        assert 0.8 < memory / results["peak_memory"] < 1.2, (told, record)
        shares.append(cpu / results["cpu_seconds"])
        if 0.8 < shares[-1] < 1.2:
            return
    pytest.fail(f"predicted CPU time / the run's: {shares}")


def _run(line, folder, *more):
    words = [sys.executable, "-m", "diffcli", *line.split(), *more]
    done = subprocess.run(words, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
