"""What ranks agree on, how a loss stands out, and which temporary files are stale."""

import math
import os
import subprocess
import sys

import pytest
import torch

from diffcli.training.agreement import Agreement
from diffcli.training.checkpoints import sweep
from diffcli.training.nonfinite import finite
from diffcli.training.spikes import LossSpike


class Strategy:
    """Two ranks in one process: the other one's row is known beforehand."""

    def __init__(self, other):
        self.other = other

    def all_gather(self, mine):
        return torch.stack([mine, torch.tensor(self.other, dtype=mine.dtype)])


def exchange(agreement, other, dtype):
    asked = agreement.ask(Strategy(other), torch.tensor([3.0], dtype=dtype))
    assert agreement.figures(asked).tolist() == [[3.0], [4.0]]
    return agreement.agree(asked.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_one_rank_wishes_all_do(dtype):
    agreement = Agreement()
    rows = exchange(agreement, [0, 0, 0, 4.0], dtype)
    assert rows == [[3.0], [4.0]]
    assert not agreement.leaving and not agreement.save
    exchange(agreement, [15, 0, 1, 4.0], dtype)
    assert agreement.leaving and agreement.save and agreement.agreed_signum == 15
    assert agreement.signum == 0  # none came here
    agreement = Agreement()
    agreement.signum, agreement.save_at = 2, -math.inf
    assert not agreement.leaving  # a wish of this rank alone
    exchange(agreement, [0, 0, 0, 4.0], dtype)
    assert agreement.agreed_signum == 2 and agreement.save and not agreement.late
    agreement = Agreement()
    agreement.stop_at = -math.inf
    assert agreement.leave(Strategy([0, 0, 0]), torch.device("cpu")) and agreement.late


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (100.0, 0.0), (1.0, -50.0)])
def test_a_spike_is_in_standard_deviations(scale, shift):
    """Of normal losses of any size and sign; one spike does not hide the next; the largest since the last row is kept."""
    spike, losses = LossSpike(), torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert [spike.see(scale * x.item() + shift) for x in losses][9] is None
    spike.reset()
    assert spike.see(scale * 8 + shift) == pytest.approx(8, rel=0.25)
    assert spike.see(scale * 4 + shift) == pytest.approx(8, rel=0.25)
    spike.reset()
    assert spike.see(scale * 4 + shift) == pytest.approx(4, rel=0.25)
    other = LossSpike()
    other.restore(spike.state())
    spike.reset(), other.reset()
    assert spike.see(shift) == other.see(shift)


def test_losses_that_never_change_have_no_spike():
    spike = LossSpike()
    assert [spike.see(1.0) for _ in range(50)] == [None] * 50


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_element_of_many(value):
    weights = [torch.full((3, 4), 3e38), torch.zeros(5, dtype=torch.float16)]  # a sum of squares is beyond float32
    assert finite(weights)
    weights[1][3] = value
    assert not finite(weights)


def test_temporary_files_of_the_dead_are_swept(tmp_path):
    """Not those of a living process, nor what is no temporary file."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for folder in ("checkpoints", "samples"):
        (tmp_path / folder).mkdir()
    kept = [".1.tmp.grid.png", "checkpoints/last.ckpt", "notes.tmp", "checkpoints/.hidden"]
    stale = [f"checkpoints/.{gone.pid}.tmp.last.ckpt.part", f".{gone.pid}.tmp.run.json", f".{os.getpid()}.tmp.grid.png"]
    stale += [f"samples/.{gone.pid}.tmp.step0000001.png"]
    for name in [*kept, *stale]:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
