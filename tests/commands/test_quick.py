"""compile= and precision=: the same samples sooner, or a sentence; and how soon a command begins."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

EXACT = ("sample", "network=exact", "n=1", "steps=1", "png=false")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ((*EXACT, "compile=true"), "compile=true: this model has no network, only formulas"),
        ((*EXACT, "precision=bf16"), "precision=bf16: this model has no network"),
        ((*EXACT, "precision=half"), "precision"),
    ],
)
def test_what_cannot_be_quickened_is_refused(cli, line, sentence):
    done = cli(*line)
    assert done.code == 2
    assert sentence in done.err


@pytest.mark.heavy
def test_compiled_commands_find_what_others_find(cli, tmp_path):
    train = ("train", "data=moons", "network=mlp", "trainer.max_steps=20", "preview.every=0", "out=t")
    assert cli(*train, "batch_size=64").code == 0
    small = {
        "sample": ("n=20", "steps=3", "batch_size=16", "guidance=none"),
        "nll": ("n=20", "batch_size=16", "also=elbo", "elbo.times=4", "likelihood.solver=heun", "likelihood.steps=4"),
        "evaluate": ("n=50", "repeats=1", "steps=3", "keep_samples=true", "neighbours=false"),
    }
    files = {"sample": "samples.npy", "nll": "nll.csv", "evaluate": "samples.npy"}
    for command, settings in small.items():
        found = []
        for compiled in ("false", "true"):
            out = f"{command}-{compiled}"
            done = cli(command, "ckpt=t/checkpoints/last.ckpt", *settings, f"compile={compiled}", f"out={out}")
            assert done.code == 0, done.err
            path = tmp_path / out / files[command]
            found.append(np.load(path) if path.suffix == ".npy" else np.genfromtxt(path, delimiter=",", skip_header=1))
        plain, compiled = (a[~np.isnan(a)] for a in found)
        np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-3)
    done = cli(
        "sample", "ckpt=t/checkpoints/last.ckpt", "n=20", "steps=3", "batch_size=16", "precision=bf16", "out=low"
    )
    assert done.code == 0, done.err
    low, plain = (np.load(tmp_path / name / "samples.npy") for name in ("low", "sample-false"))
    assert 0 < np.abs(low - plain).max() < 0.01 * np.abs(plain).max()  # a bfloat16 has 8 bits


def cpu_seconds(line, folder) -> float:
    """Of one run of the program, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "diffcli", *line], cwd=folder, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("line", "most"), [(["--help"], 0.3), pytest.param(EXACT, 4.0, marks=pytest.mark.heavy)])
def test_a_command_begins_soon(line, most, tmp_path):
    """In CPU time, the least of up to five runs; that of sample holds its one network call and its end too."""
    assert any(cpu_seconds(line, tmp_path) <= most for _ in range(5))
