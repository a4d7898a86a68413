"""Jobs shared over processes: their results are those of one process, in order, and a failure is one failure."""

import json
import os
import sys
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.errors import DiffcliError, NumericalError
from diffcli.sharing import share
from diffcli.signals import SIGNALS

EXACT = ("network=exact", "data=mixture")
TWO = [torch.device("cpu")] * 2


@pytest.fixture
def square(monkeypatch):
    """The other processes get this one's path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return import_module("sharing_job").Square()


def test_results_come_in_the_order_of_the_jobs_from_both_processes(square):
    found = list(share(square, list(range(7)), TWO))
    assert [value for value, _ in found] == [k**2 for k in range(7)]
    pids = [pid for _, pid in found]
    assert len(set(pids)) == 2 and os.getpid() not in pids
    assert len(set(pids[::2])) == len(set(pids[1::2])) == 1  # job k on device k modulo 2


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_signal_for_the_group_is_the_parents(square):
    resource_tracker._resource_tracker._stop()  # multiprocessing starts it anew, and lifts the blocking of signals then
    results = share(square, list(range(4)), TWO)
    for _ in TWO:
        status = Path(f"/proc/{next(results)[1]}/status").read_text()
        blocked = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)
        assert all(blocked >> (signum - 1) & 1 for signum in SIGNALS)
    results.close()


def test_a_failure_of_a_job_is_raised_as_it_was(square):
    results = share(square, [1, 2, -3, 4], TWO)
    assert [next(results)[0] for _ in range(2)] == [1, 4]
    with pytest.raises(NumericalError, match="job -3") as raised:
        next(results)
    assert raised.value.message == "job -3 is below 0" and raised.value.hint == "more" and raised.value.exit_code == 4


def test_a_process_that_dies_is_named(square):
    results = share(square, [1, 200, 3], TWO)
    assert next(results)[0] == 1
    with pytest.raises(DiffcliError, match=r"the process of cpu ended.*\(exit code -9\)"):
        next(results)


def test_an_iteration_that_ends_early_ends_the_processes(square):
    results = share(square, list(range(50)), TWO)
    _, pid = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("sampler", ["ancestral", pytest.param("rk45", marks=pytest.mark.heavy)])
def test_two_devices_draw_the_samples_of_one(cli, tmp_path, sampler):
    model = ("sample", "network=exact", "data=mixture", "batch_size=16", "n=41", f"sampler={sampler}")
    for devices in (1, 2):
        done = cli(*model, f"devices={devices}", f"out=d{devices}")
        assert done.code == 0, done.err
    one, two = (np.load(tmp_path / f"d{k}" / "samples.npy") for k in (1, 2))
    assert len(one) == 41 and np.array_equal(one, two)


GUIDED = ("sampler=ancestral", "label=all", "guidance=cfg", "guidance.scale=2")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "more", [GUIDED, ("task=denoise", "task.noise=0.5", "inputs=3", "each=45")], ids=["label", "task"]
)
def test_eight_processes_draw_the_samples_of_one(cli, tmp_path, monkeypatch, more):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    number = () if "task=denoise" in more else ("n=135",)
    for devices in (1, 8):
        done = cli(
            "sample", *EXACT, "batch_size=16", "steps=3", *number, *more, f"devices={devices}", f"out=d{devices}"
        )
        assert done.code == 0, done.err
    one, eight = (np.load(tmp_path / f"d{k}" / "samples.npy") for k in (1, 8))
    assert len(one) == 135 and np.array_equal(one, eight)


@pytest.mark.heavy
@pytest.mark.parametrize("more", [("likelihood.solver=rk45", "label=own"), ("also=elbo",)])
def test_two_devices_measure_the_likelihoods_of_one(cli, tmp_path, more):
    """To the last bit, in the rows and in the figures."""
    for devices in (1, 2):
        done = cli("nll", *EXACT, "data.n=50", "batch_size=16", *more, f"devices={devices}", f"out=l{devices}")
        assert done.code == 0, done.err
    one, two = (json.loads((tmp_path / f"l{k}" / "run.json").read_text()) for k in (1, 2))
    assert (tmp_path / "l1/nll.csv").read_bytes() == (tmp_path / "l2/nll.csv").read_bytes()
    for record in (one, two):
        del record["results"]["measuring_seconds"]
    assert one["results"] == two["results"] and one["nfe"] == two["nfe"]


def test_devices_are_refused_where_they_are_not_there_or_make_no_sense(cli):
    model = ("sample", "network=exact", "data=mixture")
    many = cli(*model, "devices=9999")
    assert many.code == 2 and "this machine has" in many.err
    watched = cli(*model, "devices=2", "trajectory=true")
    assert watched.code == 2 and "trajectory=true" in watched.err
