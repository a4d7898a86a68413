"""A resumed run is the uninterrupted one, bit for bit."""

import pytest
import torch

TINY = (
    "trainer.max_steps=7", "batch_size=100", "preview.every=0", "network.channels=8", "network.multipliers=[1]",
    "network.attention=[]", "network.dropout=0.1", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1",
)  # fmt: skip


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_same(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, (list, tuple)):
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{where}.{i}")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("stop", [1, 3, 5])  # 14 batches an epoch with accumulation below: all are mid-epoch
@pytest.mark.parametrize("extra", [(), ("workers=2",), ("trainer.accumulate_grad_batches=4",)])
def test_resume_equals_uninterrupted(cli, tmp_path, stop, extra):
    whole = cli("train", *TINY, "checkpoint.every=1", "checkpoint.keep=9", "out=whole", *extra)
    assert whole.code == 0, whole.err
    middle = tmp_path / f"whole/checkpoints/step{stop:07d}.ckpt"
    resumed = cli("train", *TINY, "checkpoint.every=1", "checkpoint.keep=9", "out=rest", f"resume={middle}", *extra)
    assert resumed.code == 0, resumed.err
    a, b = load(tmp_path / "whole/checkpoints/last.ckpt"), load(tmp_path / "rest/checkpoints/last.ckpt")
    for part in ("state_dict", "ema", "optimizer_states", "batches", "ema_updates", "global_step"):
        assert_same(a[part], b[part], part)
    assert a["global_step"] == 7
    assert not torch.equal(
        *(next(iter(load(p)["ema"].values())) for p in (middle, tmp_path / "whole/checkpoints/last.ckpt"))
    )
